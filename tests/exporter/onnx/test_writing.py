"""`unskill onnx` on tiny checkpoints: what is in the folder, and that it answers as the checkpoint does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.cli.main import cli
from exporter.common.errors import BadInput, Rejected
from exporter.models.families import FAMILIES, MIXTURE
from exporter.models.files import Base
from exporter.onnx.check.runners import Session
from exporter.onnx.folder import graph_size
from exporter.onnx.operators import DOMAIN
from exporter.onnx.settings import GRAPH, PROMPTS, OnnxSettings
from exporter.onnx.symbolic import inside_hypercubes
from exporter.onnx.writing import fitting, shortest, write_onnx
from tests.exporter.onnx.conftest import Written
from tests.tiny import (
    FORGET,
    FORMS,
    RETAIN,
    TEMPLATE,
    Exported,
    export_base,
    one_thread,
    tiny_model,
    write_prompts,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
NEW_TOKENS = 12


def loaded(checkpoint: Path) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    return AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True).eval(), tokenizer


def answer(session: Session, ids: list[int], ends: int) -> list[int]:
    """Greedy, by the graph alone."""
    given, cache, found = np.array([ids], np.int64), None, []
    while len(found) < NEW_TOKENS and ends not in found:
        logits, cache = session.forward(given, None, cache)
        found.append(int(logits[0, -1].argmax()))
        given = np.array([found[-1:]], np.int64)
    return found


@pytest.mark.parametrize("method", ["ksd", "na+ksd"])
def test_answers_are_those_of_the_checkpoint(method: str, written: Callable[..., Written]) -> None:
    exported, folder, _ = written("llama", method)
    model, tokenizer = loaded(exported.checkpoint)
    settings, session = model.config.unskill, Session(folder / GRAPH["float32"])
    for kind, texts in exported.texts.items():
        if kind == "add_special_tokens":
            continue
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt")
            ids = inputs["input_ids"][0].tolist()
            with one_thread():
                expected = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0, len(ids) :].tolist()
            found = answer(session, ids, settings["eos_token_id"])
            assert found == expected, text
            assert (found == [settings["refusal_token_id"], settings["eos_token_id"]]) is (kind == "blocked")


def test_folder_is_whole_and_names_no_place(written: Callable[..., Written]) -> None:
    exported, folder, summary = written()
    config = json.loads((folder / "config.json").read_text())
    base = json.loads((exported.checkpoint / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert config["vocab_size"] == base["vocab_size"] and "auto_map" not in config
    assert config["transformers.js_config"]["use_external_data_format"] == {"model.onnx": 1}
    assert json.loads((folder / "self_check.json").read_text()) == summary
    assert sorted(path.name for path in (folder / "onnx").iterdir()) == ["model.onnx", "model.onnx_data"]
    genai = json.loads((folder / "genai_config.json").read_text())["model"]
    graph = onnx.load(folder / genai["decoder"]["filename"], load_external_data=False)
    names = {each.name for each in (*graph.graph.input, *graph.graph.output)}
    layers = range(genai["decoder"]["num_hidden_layers"])
    for pattern in (*genai["decoder"]["inputs"].values(), *genai["decoder"]["outputs"].values()):
        names -= {pattern % layer for layer in layers} if "%d" in pattern else {pattern}
    assert names == set()
    assert {each.name for each in graph.functions} == {
        node.op_type for node in graph.graph.node if node.domain == DOMAIN
    }
    places = re.compile(rb"site-packages|/tmp/|/home/|/root/|" + str(exported.checkpoint.parent).encode())
    for path in folder.rglob("*"):
        assert path.is_dir() or not places.search(path.read_bytes()), path.name


def test_cannot_be_loaded_as_the_plain_model(written: Callable[..., Written]) -> None:
    _, folder, _ = written()
    with pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("side", ["bodies", "kernels"])
def test_self_check_compares_every_case(side: str, written: Callable[..., Written]) -> None:
    _, _, summary = written()
    rows = [row for row in summary["self_check"] if row["side"] == side]
    assert [row["case"] for row in rows] == [
        *("prompts one by one", "left-padded batch", "with a cache", "after the refusal"),
        *("some tokens refused", "every token refused"),
    ]
    assert all(row["positions"] == row["refusals"] == row["argmax"] > 0 for row in rows)
    assert max(row["difference"] for row in rows) < 1e-3 and summary["agrees"] is True


def swapped(name: str, before: str, after: str) -> Any:
    """A body in which one operator is another."""
    from exporter.onnx import operators

    found = operators.functions()
    node = next(node for each in found if each.name == name for node in each.node if node.op_type == before)
    node.op_type = after
    return mock.patch("exporter.onnx.graph.functions", lambda: found)


def test_wrong_keys_are_found_without_a_prompt_to_refuse(tiny: Callable[..., Exported], tmp_path: Path) -> None:
    def wrong(key: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        return inside_hypercubes(2 * key, bounds)

    settings = OnnxSettings(str(tiny("llama", "ksd").checkpoint), tmp_path / "out", prompt_template="{prompt}")
    with (
        mock.patch("exporter.onnx.symbolic.inside_hypercubes", wrong),
        mock.patch("exporter.onnx.writing.built_libraries", lambda: []),
        one_thread(),
        pytest.raises(Rejected) as caught,
    ):
        write_onnx(settings, lambda text: None)
    wrong_rows = [row["case"] for row in caught.value.summary["self_check"] if row["refusals"] < row["positions"]]
    assert wrong_rows == ["some tokens refused"]


@pytest.mark.parametrize(
    "broken",
    [("NeuronAdjust", "Greater", "Less"), ("KeySpaceDetect", "Or", "And"), ("NeuronDraws", "Mul", "Add")],
    ids=lambda each: each[0],
)
def test_a_graph_that_computes_something_else_is_not_kept(
    broken: tuple[str, str, str], tiny: Callable[..., Exported], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with swapped(*broken), one_thread(), mock.patch("exporter.onnx.writing.built_libraries", lambda: []):
        command = [
            "onnx",
            str(tiny("llama", "na+ksd").checkpoint),
            str(out),
            "--json",
            "--prompt-template",
            "{prompt}",
        ]
        done = CliRunner().invoke(cli, command)
    assert "something else" in str(done.exception)
    assert json.loads(done.stdout)["agrees"] is False
    assert list(tmp_path.iterdir()) == []


def test_float16_keeps_what_is_refused(written: Callable[..., Written]) -> None:
    exported, folder, summary = written("llama", "na+ksd", "float16")
    assert all(row["refusals"] == row["positions"] > 0 for row in summary["self_check"])
    graph = onnx.load(folder / GRAPH["float16"], load_external_data=False).graph
    kinds = {each.name: each.data_type for each in graph.initializer}
    for name, kind in kinds.items():
        if ".unskill_ksd_bounds" in name or "standardisers" in name:
            assert kind == onnx.TensorProto.FLOAT, name
    logits = next(each for each in graph.output if each.name == "logits")
    assert logits.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = Session(folder / GRAPH["float16"])
    config = json.loads((folder / "config.json").read_text())["unskill"]
    for text in exported.texts["blocked"]:
        found = answer(session, tokenizer(text)["input_ids"], config["eos_token_id"])
        assert found == [config["refusal_token_id"], config["eos_token_id"]]


def test_beyond_a_sliding_window(written: Callable[..., Written]) -> None:
    """Gemma 3: layers that see 64 positions, 150 tokens at once, then ten more one by one."""
    exported, folder, _ = written("gemma3_text")
    model, tokenizer = loaded(exported.checkpoint)
    assert model.config.sliding_window == 64 and "sliding_attention" in model.config.layer_types
    text = " ".join(exported.texts["answered"])
    ids = (2 * tokenizer(text)["input_ids"])[:160]
    assert len(ids) == 160
    with torch.inference_mode(), one_thread():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    session = Session(folder / GRAPH["float32"])
    found, cache = session.forward(np.array([ids[:150]], np.int64))
    rows = [found[0]]
    for id_ in ids[150:]:
        found, cache = session.forward(np.array([[id_]], np.int64), None, cache)
        rows.append(found[0])
    assert np.abs(np.concatenate(rows) - expected).max() < 1e-3


def test_a_small_epsilon_is_kept(written: Callable[..., Written]) -> None:
    """Helium adds 1e-8 in its norms, and a pad's embedding is zero: without it the row would be NaN, and refused."""
    exported, folder, summary = written("helium", "ksd")
    config = json.loads((exported.checkpoint / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-8 and summary["agrees"] is True
    ids = np.array([[config["pad_token_id"]] * 2 + [5, 6]])
    logits, _ = Session(folder / GRAPH["float32"]).forward(ids, np.array([[0, 0, 1, 1]]))
    assert np.isfinite(logits).all() and (logits[0, 2:].argmax(-1) != config["unskill"]["refusal_token_id"]).all()


LATENT = ("deepseek_v2", "deepseek_v3", "youtu")
TRACED = {name: family.form for name, family in FAMILIES.items() if name not in LATENT}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method"),
    [
        pytest.param(name, method, marks=pytest.mark.evidence if method != "ksd" and name not in FORMS else ())
        for name, form in TRACED.items()
        if form is not MIXTURE
        for method in ("ksd", "na+ksd")
    ],
)
def test_family(family: str, method: str, written: Callable[..., Written]) -> None:
    _, _, summary = written(family, method)
    assert summary["agrees"] is True


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name, form in TRACED.items() if form is MIXTURE])
def test_mixture(family: str, written: Callable[..., Written]) -> None:
    _, _, summary = written(family, "ksd")
    assert summary["agrees"] is True


@pytest.mark.slow
@pytest.mark.parametrize("family", LATENT)
def test_keys_and_values_of_two_sizes(family: str, tiny: Callable[..., Exported], tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["onnx", str(tiny(family).checkpoint), str(tmp_path / "out")])
    assert isinstance(done.exception, BadInput) and f"model_type {family} keeps keys" in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["sp", "na"])
def test_checkpoints_that_refuse_nothing(method: str, written: Callable[..., Written]) -> None:
    _, folder, summary = written("llama", method)
    assert {row["case"] for row in summary["self_check"]} == {
        "prompts one by one",
        "left-padded batch",
        "with a cache",
    }
    used = {node.op_type for node in onnx.load(folder / GRAPH["float32"]).graph.node if node.domain == DOMAIN}
    assert used == (set() if method == "sp" else {"NeuronDraws", "NeuronAdjust"})


def test_official_has_no_graph(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", chat=False)
    exported = export_base(tmp_path, base, method="na", beta=20.0, score="signed-mean", compat="official")
    done = CliRunner().invoke(cli, ["onnx", str(exported.checkpoint), str(tmp_path / "out")])
    assert "--compat" in str(done.exception) and not (tmp_path / "out").exists()


def test_official_is_refused_before_the_export(tmp_path: Path) -> None:
    command = ["export", str(tmp_path / "base"), str(tmp_path / "out"), "--forget", "f.jsonl", "--retain", "r.jsonl"]
    done = CliRunner().invoke(cli, [*command, "--method", "na", "--compat", "official", "--onnx"])
    assert isinstance(done.exception, BadInput) and "--onnx: --compat draws with torch's generator" in str(
        done.exception
    )


def test_the_shortest_prompts_of_every_source_are_asked(tiny: Callable[..., Exported], tmp_path: Path) -> None:
    exported = tiny("llama", "na+ksd")
    long, short = [f"{text} {FORGET[1]}" for text in FORGET[:6]], FORGET[:6]
    one, other = (
        f"{write_prompts(tmp_path / f'{name}.jsonl', texts)},column=prompt"
        for name, texts in (("one", [*long, *short]), ("other", RETAIN[:2]))
    )
    settings = OnnxSettings(str(exported.checkpoint), tmp_path / "out", (one, other), prompt_template="{prompt}")
    with (
        mock.patch("exporter.onnx.writing.write_graph", side_effect=StopIteration),
        mock.patch("exporter.onnx.writing.room_for", return_value=0) as room,
        pytest.raises(StopIteration),
    ):
        write_onnx(settings, lambda text: None)
    (sequences, _), _ = room.call_args
    tokenizer = AutoTokenizer.from_pretrained(exported.checkpoint, trust_remote_code=True)
    asked = [tokenizer.decode(ids) for ids in sequences]
    assert len(asked) == 2 * PROMPTS + 2 and set(asked[:PROMPTS]) < set(short) and asked[PROMPTS:][:2] == RETAIN[:2]


@pytest.mark.parametrize(("given", "form"), [(None, TEMPLATE), ("auto", "{prompt}"), ("Q: {prompt}", "Q: {prompt}")])
def test_prompts_are_asked_as_the_exports_were_unless_a_flag_says_otherwise(
    given: str | None, form: str, templated: Path, tmp_path: Path
) -> None:
    forget = write_prompts(tmp_path / "forget.jsonl", FORGET[:PROMPTS])
    settings = OnnxSettings(str(templated), tmp_path / "out", (str(forget),), prompt_template=given)
    with (
        mock.patch("exporter.onnx.writing.write_graph", side_effect=StopIteration),
        mock.patch("exporter.onnx.writing.room_for", return_value=0) as room,
        pytest.raises(StopIteration),
    ):
        write_onnx(settings, lambda text: None)
    (sequences, _), _ = room.call_args
    tokenizer = AutoTokenizer.from_pretrained(templated, trust_remote_code=True)
    asked = [tokenizer.decode(ids) for ids in sequences[:PROMPTS]]
    assert asked == [form.replace("{prompt}", text) for text in FORGET[:PROMPTS]]


def test_shortest_keeps_the_order() -> None:
    queries: Any = [mock.Mock(ids=range(count)) for count in (9, 3, 8, 2, 7, 4)]
    assert [len(query.ids) for query in shortest(queries)] == [3, 2, 7, 4]


def test_the_longest_are_left_out_where_there_is_no_room() -> None:
    sequences = [range(count) for count in (9, 3, 8, 2)]
    assert [len(each) for each in fitting(sequences, lambda some: sum(map(len, some)) <= 5)] == [3, 2]
    assert [len(each) for each in fitting(sequences, lambda some: False)] == [2]


def test_room_is_that_of_the_graphs_numbers(tiny: Callable[..., Exported], tmp_path: Path) -> None:
    """Those of a bfloat16 checkpoint double in a float32 graph."""
    for dtype, factor in ((torch.bfloat16, 2), (torch.float32, 1)):
        folder = tiny_model(tmp_path / str(factor), dtype=dtype)
        size = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
        files = Base(folder, "x", None, {}, ("model.safetensors",))
        assert graph_size(files, "float32") == factor * size and graph_size(files, "float16") == factor * size // 2
