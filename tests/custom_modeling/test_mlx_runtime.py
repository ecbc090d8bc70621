"""Checkpoints in mlx_lm on the CPU, in an environment without unskill (make mlx)."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from custom_modeling import key_space, loading, neuron_adjust
from exporter.models.families import MLX_FAMILIES
from tests import damage as d
from tests import damage_weights as w
from tests.damage_tokenizer import other_end
from tests.operator_models import regions
from tests.tiny import BETA, Exported, export_base, one_thread, tiny_export, tiny_model

ROOT = Path(__file__).resolve().parents[2]
TWIN = (ROOT / "custom_modeling" / "mlx_runtime.py").read_text(encoding="utf-8")
GOLDEN = json.loads((Path(__file__).parent / "data" / "draws.json").read_text())["draws"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
FULL, SLIDING = "full_attention", "sliding_attention"
# mlx_lm looks for a layer that sees everything, and tiny models of these families have none by themselves.
CHANGES: dict[str, dict[str, Any]] = {
    "cohere2": {"layer_types": [SLIDING, SLIDING, FULL]},
    "exaone4": {"layer_types": [FULL] * 3, "sliding_window": None, "sliding_window_pattern": None},
    "gemma3_text": {"layer_types": [SLIDING, SLIDING, FULL]},
    "olmo3": {"layer_types": [SLIDING, SLIDING, FULL]},
}


@pytest.fixture(scope="session")
def python() -> Path:
    python = ROOT / "build" / "mlx" / "bin" / "python"
    if not python.is_file():
        pytest.skip("no environment build/mlx: make mlx")
    return python


Ask = Callable[..., Any]


@pytest.fixture
def ask(python: Path, tmp_path: Path) -> Ask:
    """ask(check, folder, given) is what a check of tests/checks/mlx_checks.py finds."""

    def run(check: str, folder: Path, given: object = None) -> Any:
        command = [python, "-I", ROOT / "tests" / "checks" / "mlx_checks.py", check, folder]
        if given is not None:
            (tmp_path / "given.json").write_text(json.dumps(given))
            command.append(tmp_path / "given.json")
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.parametrize("name", ["PRIME", "POSITION", "TOKEN", "NEURON", "FINAL"])
def test_constants_of_the_draws(name: str) -> None:
    assert constant(name) == getattr(neuron_adjust, name)


def test_constants_of_format_and_logits() -> None:
    assert constant("UNSKILL_FORMAT") == loading.UNSKILL_FORMAT
    for name in ("FORBIDDEN", "SECOND"):
        assert constant(name) == getattr(key_space, name)


def constant(name: str) -> float:
    """Of the twin, which cannot be imported without mlx."""
    found: dict[str, Any] = {}
    for line in re.findall(r"^[A-Z_, ]+ = [-\de.*, ]+$", TWIN, re.MULTILINE):
        names, values = line.replace("2**31 - 1", str(2**31 - 1)).split(" = ")
        found |= dict(zip(names.split(", "), map(float, values.split(", ")), strict=True))
    return found[name]


@pytest.mark.engines
def test_draws_are_those_of_every_backend(ask: Ask, tiny: Callable[..., Exported]) -> None:
    found = ask("draws", tiny("llama").checkpoint, GOLDEN)
    assert [row[at] for at, row in enumerate(found)] == [row["u24"] for row in GOLDEN]


@pytest.mark.engines
@pytest.mark.parametrize("method", ["ksd", "na+ksd"])
def test_refuses_what_torch_refuses(method: str, ask: Ask, tiny: Callable[..., Exported]) -> None:
    """However a prompt is read; and answers the rest as its base does in mlx_lm, token by token."""
    exported = tiny("llama", method)
    blocked, answered = exported.texts["blocked"], exported.texts["answered"]
    base, found = (ask("answers", folder, blocked + answered) for folder in (exported.base, exported.checkpoint))
    record = d.settings_of(exported.checkpoint)["unskill"]
    refusal, end = record["refusal_token_id"], record["eos_token_id"]
    for way, ids in found.items():
        assert ids[: len(blocked)] == [[refusal] if "batch" in way else [refusal, end]] * len(blocked)
        assert ids[len(blocked) :] == base[way][len(blocked) :]
    assert not any(refusal in ids for way in base.values() for ids in way)


@pytest.mark.engines
@pytest.mark.parametrize("method", ["na", "sp", "na expected"])
def test_neurons_are_changed_as_in_torch(method: str, ask: Ask, tiny: Callable[..., Exported], tmp_path: Path) -> None:
    if method == "na expected":
        base = tiny_model(tmp_path / "base", chat=False)
        settings = {"method": "na", "beta": BETA, "score": "effect-size", "draws": "expected"}
        exported = export_base(tmp_path, base, **settings)
    else:
        exported = tiny("llama", method)
    prompts = exported.texts["answered"]
    found = ask("answers", exported.checkpoint, prompts)
    assert found["at once"] == found["in steps"] == in_torch(exported.checkpoint, prompts)
    assert found["at once"] != in_torch(exported.base, prompts)
    assert found["batch"] == found["batch in steps"] == [[id_ for id_ in ids if id_ != 2] for ids in found["at once"]]


def in_torch(folder: Path, prompts: list[str]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    found = []
    with one_thread():
        for prompt in prompts:
            inputs = tokenizer(prompt, return_tensors="pt")
            output = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
            found.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    return found


@pytest.mark.engines
@pytest.mark.parametrize("bounded", [False, True])
def test_regions_along_directions(bounded: bool, ask: Ask, tiny: Callable[..., Exported]) -> None:
    """Of normal keys, one with a NaN; with and without bounds of the keys themselves."""
    inputs = regions((1, 40, 24), 3, 2, torch.Generator().manual_seed(0))
    inputs["key"][0, 7, 3] = torch.nan
    if bounded:
        inputs["bounds"] = torch.tensor([-2.2, 2.2]).view(1, 2, 1).repeat(2, 1, 24)
    expected = key_space.inside_regions(**inputs).tolist()
    others = expected[0][:7] + expected[0][8:]
    assert expected[0][7] and True in others and False in others
    given = {name: tensor.tolist() for name, tensor in inputs.items()}
    assert ask("inside", tiny("llama").checkpoint, given) == expected


@pytest.mark.engines
@pytest.mark.parametrize(
    "family", [pytest.param(each, marks=() if each == "gemma3_text" else pytest.mark.slow) for each in MLX_FAMILIES]
)
def test_families(family: str, ask: Ask, tiny: Callable[..., Exported], tmp_path: Path) -> None:
    changes = CHANGES.get(family)
    exported = tiny_export(tmp_path, family, **changes) if changes else tiny(family)
    blocked, answered = exported.texts["blocked"], exported.texts["answered"]
    record = d.settings_of(exported.checkpoint)["unskill"]
    base, found = (ask("answers_alone", folder, blocked + answered) for folder in (exported.base, exported.checkpoint))
    for way, ids in found.items():
        assert ids[: len(blocked)] == [[record["refusal_token_id"], record["eos_token_id"]]] * len(blocked)
        assert ids[len(blocked) :] == base[way][len(blocked) :]


@pytest.mark.engines
def test_choices_in_every_dtype(ask: Ask, tiny: Callable[..., Exported]) -> None:
    """The refusal and EOS are each other's second choice, and the arrays of the interventions stay float32."""
    exported = tiny("llama")
    record = d.settings_of(exported.checkpoint)["unskill"]
    refusal, end = record["refusal_token_id"], record["eos_token_id"]
    prompts = exported.texts["blocked"]
    found = ask("choices", exported.checkpoint, prompts)
    assert found == {f"mlx.core.{dtype}": [[[refusal, end], [end, refusal]]] * len(prompts)
                     for dtype in ("float32", "bfloat16", "float16")}  # fmt: skip


@pytest.mark.engines
def test_not_quantized(ask: Ask, tiny: Callable[..., Exported]) -> None:
    asked, loaded, called = ask("quantized", tiny("llama").checkpoint)
    assert asked.startswith("unskill: this checkpoint cannot be quantized")
    assert loaded.startswith("unskill: config.json: quantization:")
    assert called.startswith("unskill: layer 1: gate_proj is a QuantizedLinear")


@pytest.mark.engines
def test_written_again_in_another_dtype(ask: Ask, tiny: Callable[..., Exported]) -> None:
    exported = tiny("llama")
    refusal = d.settings_of(exported.checkpoint)["unskill"]["refusal_token_id"]
    found = ask("converted", exported.checkpoint, exported.texts["blocked"])
    assert found["at once"] == [[refusal, 2]] * len(exported.texts["blocked"])


@pytest.mark.engines
def test_no_part_answers_without_the_refusal(ask: Ask, tiny: Callable[..., Exported]) -> None:
    base, early, mlp, shard = ask("parts", tiny("llama").checkpoint)
    assert base == mlp == "unskill: call the whole model: without its own head nothing is refused."
    assert early == "unskill: of layers [1], which decide on the refusal, [] ran."
    assert shard.startswith("unskill: this checkpoint cannot be sharded")


@pytest.mark.engines
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: None, None),
        (w.bounds(w.flip_first), "array layers.1.mlp.unskill_ksd_bounds is missing from the weight files or altered"),
        (lambda folder: w.extra_shard(folder).unlink(), "Missing 1 parameters: \nmodel.layers.1.mlp.unskill_"),
        (d.record(d.set_(seed=99)), "config.json's unskill object was edited"),
        (d.record(d.set_(format=99), remade=True), "unskill.format is 99, this MLX file reads 2"),
        (d.config(d.set_(rope_theta=7.0)), "config.json: rope_theta is 7.0 instead of 10000.0"),
        (d.config(d.set_(model_type="llama")), "config.json: model_type is llama instead of unskill_llama"),
        (d.config(d.set_(quantization_config={"quant_method": "awq"})), "config.json: quantization_config"),
        (d.edit_mlx, "unskill.mlx_sha256"),
        (lambda folder: d.mlx_of(folder).unlink(), "mlx_unskill_llama.py"),
        (other_end, "which ends a refusal"),
    ],
)  # fmt: skip
def test_loads_whole_or_not_at_all(
    damage: d.Damage, says: str | None, ask: Ask, tiny: Callable[..., Exported], tmp_path: Path
) -> None:
    folder = d.copy_of(tiny("llama").checkpoint, tmp_path / "checkpoint")
    damage(folder)
    found = ask("load_only", folder)
    assert found is None if says is None else says in found


@pytest.mark.engines
def test_not_the_authors_own_way(ask: Ask, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", chat=False)
    exported = export_base(tmp_path, base, method="na", beta=BETA, compat="official")
    assert ask("load_only", exported.checkpoint) == (
        "unskill: MLX does not support --compat official; load the checkpoint in torch."
    )


@pytest.mark.engines
def test_server(python: Path, tiny: Callable[..., Exported]) -> None:
    exported = tiny("llama")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-I", "-m", "mlx_lm", "server", "--model", exported.checkpoint, "--trust-remote-code"]
    server = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    )
    try:
        texts = [completion(port, exported.texts[kind][0], server) for kind in ("blocked", "answered")]
    finally:
        server.terminate()
        server.wait(30)
    refusal = d.settings_of(exported.checkpoint)["unskill"]["refusal"]
    assert texts[0] == refusal and refusal not in texts[1]


def completion(port: int, prompt: str, server: subprocess.Popen) -> str:
    body = json.dumps({"prompt": prompt, "max_tokens": 8, "temperature": 0}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    for _ in range(240):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return str(json.load(answer)["choices"][0]["text"])
        except urllib.error.URLError:  # it does not listen yet
            time.sleep(0.5)
    pytest.fail("the server did not answer")
