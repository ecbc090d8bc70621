"""`unskill onnx --quantize`: interventions fitted on the quantised graph, or nothing at all.

What they have to be is computed here once more, with numpy, from activations that the test takes out of the graph that
was written.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from safetensors.torch import load_file
from scipy.stats import beta
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from exporter.cli import cli
from exporter.errors import BadInput, NothingSeparates
from exporter.export import export
from exporter.onnx.graph import write_graph
from exporter.onnx.operators import DOMAIN
from exporter.onnx.quantised import check_refittable, write_quantised
from exporter.onnx.settings import GRAPH, OnnxSettings
from exporter.onnx.writing import Disagrees, write_onnx
from exporter.reporting.stored import read_stored
from tests.tiny import FORGET, FORGET_MORE, RETAIN, Exported, one_skill, one_thread, tiny_model, write_prompts

TEXTS = {"forget": FORGET + FORGET_MORE, "retain": RETAIN}
TARGET = 0.8
LAYER = 1
BOUNDS = f"model.model.layers.{LAYER}.mlp.unskill_ksd_bounds"


class Made(NamedTuple):
    """A checkpoint with a calibrated alpha, its sources, and its graph in float32."""

    checkpoint: Path
    sources: dict[str, str]
    graph: Path

    def settings(self, out: Path, kind: str = "int4", **changes: Any) -> OnnxSettings:
        sources = {side: (spec,) for side, spec in self.sources.items()}
        given = {"quantize": kind, "max_false_block": 1.0, "quiet": True, **sources, **changes}
        return OnnxSettings(str(self.checkpoint), out, **given)

    def write(self, out: Path, kind: str = "int4", kernels: Sequence[Path] = (), **changes: Any) -> dict[str, Any]:
        """As the command does, but that what it traces has been traced before."""

        def traced(model: Any, path: Path) -> None:
            shutil.copytree(self.graph.parent, path.parent, dirs_exist_ok=True)

        with (
            one_thread(),
            mock.patch("exporter.onnx.quantised.write_graph", traced),
            mock.patch("exporter.onnx.quantised.built_libraries", lambda: list(kernels)),
        ):
            summary = write_quantised(self.settings(out, kind, **changes), lambda text: None)
        return json.loads(json.dumps(summary))

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return AutoTokenizer.from_pretrained(self.checkpoint)

    def part(self, name: str) -> list[list[int]]:
        """Token ids of one part of the export, by the rows that it recorded."""
        rows = json.loads((self.checkpoint / "reproduce" / "prompts.json").read_text())["skill"][name]
        texts = TEXTS[name.removeprefix("texts.").split(".")[0]]
        return [self.tokenizer(texts[row["row"] - 1])["input_ids"] for row in rows]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """made(method)"""
    found: dict[str, Made] = {}

    def get(method: str) -> Made:
        if method not in found:
            folder = tmp_path_factory.mktemp(f"quantize-{method}")
            base = tiny_model(folder / "base", chat=False)
            sources = {
                side: f"{write_prompts(folder / f'{side}.jsonl', texts)},column=prompt"
                for side, texts in TEXTS.items()
            }
            settings: dict[str, Any] = {"layer": LAYER, "target_block_rate": TARGET}
            settings |= {"beta": 20.0, "score": "effect-size"} if method == "na+ksd" else {}
            common = {"prompt_template": "{prompt}", "everyday": False, "force": True, "quiet": True}
            with one_thread():
                export(
                    one_skill(base, folder / "mine", *sources.values(), method=method, **settings, **common),
                    lambda text: None,
                )
                model = AutoModelForCausalLM.from_pretrained(folder / "mine", trust_remote_code=True).eval()
                (folder / "graph").mkdir()
                write_graph(model, folder / "graph" / "model.onnx")
            found[method] = Made(folder / "mine", sources, folder / "graph" / "model.onnx")
        return found[method]

    return get


@pytest.fixture(scope="module")
def quantised(
    made: Callable[[str], Made], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Made, Path, dict[str, Any]]]:
    """quantised(method, kind): the checkpoint, its folder, and what self_check.json has."""
    found: dict[tuple[str, str], tuple[Made, Path, dict[str, Any]]] = {}

    def get(method: str, kind: str) -> tuple[Made, Path, dict[str, Any]]:
        if (method, kind) not in found:
            out = tmp_path_factory.mktemp(f"{method}-{kind}") / "out"
            found[method, kind] = made(method), out, made(method).write(out, kind)
        return found[method, kind]

    return get


class Graph:
    """A graph file with more outputs and other constants, for tests that trust nothing of ours."""

    def __init__(self, path: Path, outputs: Sequence[str], constants: dict[str, np.ndarray] | None = None) -> None:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.name in (constants or {}):
                tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name], tensor.name))
        for name in outputs:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        beside = path.with_name("test.onnx")
        onnx.save(model, beside)
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        self._session = onnxruntime.InferenceSession(str(beside), options, providers=["CPUExecutionProvider"])
        beside.unlink()
        self._names = ["logits", *outputs]

    def __call__(self, ids: Sequence[int]) -> list[np.ndarray]:
        """Logits and the outputs asked for, without the batch's axis."""
        fed = {
            each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32)
            for each in self._session.get_inputs()
            if each.name.startswith("past")
        }
        tokens = np.array([ids], np.int64)
        fed |= {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
        fed["position_ids"] = np.arange(len(ids))[None]
        return [found[0] for found in self._session.run(self._names, fed)]


def nodes(path: Path, operator: str) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(path, load_external_data=False).graph.node if node.op_type == operator]


def constants(path: Path) -> dict[str, np.ndarray]:
    graph = onnx.load(path, load_external_data=False).graph
    return {
        tensor.name: numpy_helper.to_array(tensor, str(path.parent))
        for tensor in graph.initializer
        if "unskill" in tensor.name
    }


def refusals(path: Path, made: Made, parts: Sequence[str], changed: dict[str, np.ndarray] | None = None) -> int:
    """How many prompts of these parts the graph refuses."""
    token = json.loads((made.checkpoint / "config.json").read_text())["unskill"]["refusal_token_id"]
    graph = Graph(path, [], changed)
    return sum(int(graph(ids)[0][-1].argmax()) == token for part in parts for ids in made.part(part))


def floored(deviation: np.ndarray) -> np.ndarray:
    return np.maximum(deviation, 1e-3 * np.median(deviation))


CASES = [
    ("ksd", "int8"),
    ("ksd", "int4"),
    pytest.param("na+ksd", "int8", marks=pytest.mark.slow),
    pytest.param("na+ksd", "int4", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_hypercube_is_that_of_the_quantised_graphs_keys(
    method: str, kind: str, quantised: Callable[..., tuple[Made, Path, dict[str, Any]]]
) -> None:
    made, folder, summary = quantised(method, kind)
    path = folder / GRAPH[kind]
    (detect,) = nodes(path, "KeySpaceDetect")
    graph = Graph(path, [detect.input[0]])
    keys = {
        part: np.stack([graph(ids)[1][-1] for ids in made.part(f"forget.{part}")]).astype(np.float64)
        for part in ("fit", "calibrate")
    }
    mean, deviation = keys["fit"].mean(0), floored(keys["fit"].std(0, ddof=1))
    scores = np.sort((np.abs(keys["calibrate"] - mean) / deviation).max(-1))
    n = len(scores)
    rank = next(k for k in range(1, n + 1) if beta.sf(TARGET, k, n - k + 1) >= 0.9)
    (skill,) = summary["skills"]
    assert skill["key_space"]["alpha"]["value"] == pytest.approx(scores[rank - 1], rel=1e-5)
    expected = np.stack([mean - scores[rank - 1] * deviation, mean + scores[rank - 1] * deviation])
    (found,) = constants(path)[BOUNDS]
    assert np.abs((found - expected) / deviation).max() < 1e-4
    before = load_file(sorted(made.checkpoint.glob("*.safetensors"))[-1])[BOUNDS.removeprefix("model.")]
    assert np.abs((found - before[0].numpy()) / deviation).max() > 0.5


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_refuses_what_it_says(
    method: str, kind: str, quantised: Callable[..., tuple[Made, Path, dict[str, Any]]]
) -> None:
    """Counted anew, by the file: with its own bounds, and with those that were fitted in float32."""
    made, folder, summary = quantised(method, kind)
    (skill,) = summary["skills"]
    found, path = skill["key_space"], folder / GRAPH[kind]
    refused = refusals(path, made, ["forget.report"])
    assert refused == found["blocked"]["forget.jsonl"]["all"]["hits"]
    assert refusals(path, made, ["forget.calibrate"]) >= TARGET * found["alpha"]["calibrated_on"]
    old = load_file(sorted(made.checkpoint.glob("*.safetensors"))[-1])[BOUNDS.removeprefix("model.")].numpy()
    assert refusals(path, made, ["forget.report"], {BOUNDS: old}) == found["blocked_without_refitting"]["hits"]


def test_what_int4_weights_lose_is_had_back(quantised: Callable[..., tuple[Made, Path, dict[str, Any]]]) -> None:
    """The bounds of float32 refuse fewer than half of the prompts that were held out; those fitted anew most."""
    made, folder, _ = quantised("ksd", "int4")
    path, held_out = folder / GRAPH["int4"], ["forget.report", "forget.choose"]
    total = sum(len(made.part(part)) for part in held_out)
    old = load_file(sorted(made.checkpoint.glob("*.safetensors"))[-1])[BOUNDS.removeprefix("model.")].numpy()
    assert refusals(made.graph, made, held_out) >= 0.6 * total
    assert refusals(path, made, held_out, {BOUNDS: old}) <= 0.5 * total
    assert refusals(path, made, held_out) >= 0.7 * total


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_distributions_are_those_of_the_quantised_graphs_pre_activations(
    kind: str, quantised: Callable[..., tuple[Made, Path, dict[str, Any]]]
) -> None:
    made, folder, _ = quantised("na+ksd", kind)
    path = folder / GRAPH[kind]
    held = constants(path)
    (least,) = (name for name in held if name.endswith(".least"))
    adjust = nodes(path, "NeuronAdjust")
    graph = Graph(path, [node.input[0] for node in adjust], {least: np.full_like(held[least], np.inf)})
    moments = []
    for side in ("forget", "retain"):
        tokens = [graph(ids)[1:] for ids in made.part(f"texts.{side}.fit")]
        layers = [np.concatenate(each).astype(np.float64) for each in zip(*tokens, strict=True)]
        moments.append([(each.mean(0), floored(each.std(0, ddof=1))) for each in layers])
    ratios = []
    for node, (mu_f, sd_f), (mu_r, sd_r) in zip(adjust, *moments, strict=True):
        index = held[node.input[1]]
        wanted = np.stack([1 / sd_f, -mu_f / sd_f, 1 / sd_r, -mu_r / sd_r, mu_r, sd_r])[:, index]
        np.testing.assert_allclose(held[node.input[3]], wanted, rtol=2e-4, atol=2e-4)
        ratios.append(2 * np.log(sd_f / sd_r)[index])
    np.testing.assert_allclose(held[least], np.concatenate(ratios), atol=1e-3)


@pytest.mark.slow
def test_without_quantising_it_is_what_the_export_fitted(made: Callable[[str], Made], tmp_path: Path) -> None:
    """The same way through ONNX Runtime, on the graph in float32."""
    tried = made("na+ksd")

    def not_quantised(source: Path, target: Path, kind: str) -> int:
        shutil.copyfile(source, target)
        shutil.copyfile(f"{source}_data", target.with_name("model.onnx_data"))
        shutil.copyfile(f"{source}_data", f"{target}_data")
        return 0

    with mock.patch("exporter.onnx.quantised.quantize", not_quantised):
        summary = tried.write(tmp_path / "out")
    found = summary["skills"][0]["key_space"]
    assert found["alpha"]["value"] == pytest.approx(found["alpha_before"]["value"], rel=1e-3)
    (exported,) = json.loads((tried.checkpoint / "reproduce" / "summary.json").read_text())["skills"]
    for figure in ("blocked", "false_blocks", "false_blocks_over_answers", "limits"):
        assert found[figure] == exported["key_space"][figure], figure
    texts = summary["skills"][0]["neurons"]["texts"]
    for side, effect in exported["neurons"]["texts"].items():
        assert texts[f"skill: {side}"]["rise"] == pytest.approx(effect["rise"], abs=1e-3)
    before, after = constants(tried.graph), constants(tmp_path / "out" / GRAPH["int4"])
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_projections_are_quantised_and_nothing_else(
    kind: str, quantised: Callable[..., tuple[Made, Path, dict[str, Any]]]
) -> None:
    made, folder, summary = quantised("ksd", kind)
    path = folder / GRAPH[kind]
    graph = onnx.load(path, load_external_data=False)
    held = {tensor.name: tensor for tensor in graph.graph.initializer}
    assert not [node.name for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in held]
    quantised_nodes = [node for node in graph.graph.node if node.op_type == "MatMulNBits"]
    assert len(quantised_nodes) == 3 * 7  # query, key, value, output, gate, up, down
    assert {function.name for function in graph.functions} == {"KeySpaceDetect"}
    for node in graph.graph.node:
        if node.domain == DOMAIN:
            tensor = held[node.input[1]]
            assert tensor.data_type == onnx.TensorProto.FLOAT and not tensor.external_data
    head = held["model.lm_head.weight"]
    assert head.data_type == onnx.TensorProto.FLOAT
    data = path.with_name(path.name + "_data")
    assert hashlib.sha256(data.read_bytes()).hexdigest() == summary["weights_sha256"]
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name, data.name]
    assert data.stat().st_mode == path.stat().st_mode
    config = json.loads((folder / "config.json").read_text())
    name = {"int8": "int8", "int4": "q4"}[kind]
    assert path.name == f"model_{name}.onnx" and config["transformers.js_config"]["dtype"] == name
    assert config["transformers.js_config"]["use_external_data_format"] == {path.name: 1}
    genai = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["filename"]
    assert folder / genai == path
    assert json.loads((folder / "self_check.json").read_text()) == summary
    record = config["unskill"]["skills"][0]
    found = summary["skills"][0]["key_space"]
    assert record["alpha"] == found["alpha"] != found["alpha_before"]
    bounds = constants(path)[BOUNDS]
    assert config["unskill"]["sha256"][f"layers.{LAYER}.mlp.unskill_ksd_bounds"] == hashlib.sha256(bounds).hexdigest()
    places = re.compile(rb"site-packages|/tmp/|/home/|/root/|" + str(made.checkpoint.parent).encode())
    for each in folder.rglob("*"):
        assert each.is_dir() or not places.search(each.read_bytes()), each.name


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_bodies_and_kernels_agree(kind: str, made: Callable[[str], Made], library: Path, tmp_path: Path) -> None:
    summary = made("ksd").write(tmp_path / "out", kind, kernels=[library], answers=False)
    assert summary["agrees"] is True
    assert {row["side"] for row in summary["self_check"]} == {"bodies", "kernels"}
    assert all(row["refusals"] == row["positions"] > 0 for row in summary["self_check"])
    assert summary["skills"][0]["key_space"]["false_blocks_over_answers"] is None


def test_a_graph_that_was_not_fitted_anew_is_not_kept(made: Callable[[str], Made], tmp_path: Path) -> None:
    with (
        mock.patch("exporter.onnx.quantised.rewrite", lambda *given: None),
        pytest.raises(Disagrees, match="refuses something else"),
    ):
        made("ksd").write(tmp_path / "out", answers=False)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_separate_is_not_written_without_force(made: Callable[[str], Made], tmp_path: Path) -> None:
    """int8 activations of a random model this small hold many answers."""
    with pytest.raises(NothingSeparates, match=r"harmless prompts \(--max-false-block 0\.0\)") as caught:
        made("ksd").write(tmp_path / "out", "int8", max_false_block=0.0)
    assert caught.value.exit_code == 1 and caught.value.summary["separates"] is False
    assert list(tmp_path.iterdir()) == []
    summary = made("ksd").write(tmp_path / "out", "int8", max_false_block=0.0, force=True)
    assert summary["separates"] is False
    assert json.loads((tmp_path / "out" / "config.json").read_text())["unskill"]["skills"][0]["separates"] is False
    assert "NOT SEPARATED" in (tmp_path / "out" / "README.md").read_text()


def test_other_sources_are_refused(made: Callable[[str], Made], tmp_path: Path) -> None:
    tried = made("ksd")
    (tmp_path / "other").mkdir()
    changed = write_prompts(tmp_path / "other" / "forget.jsonl", [*TEXTS["forget"][:-1], "What else?"])
    unknown = write_prompts(tmp_path / "other" / "sums.jsonl", TEXTS["forget"])
    forget = tried.sources["forget"]
    refused = {
        "is not what the export read": {"forget": (f"{changed},column=prompt",)},
        "is no source of this checkpoint; its --forget sources are forget.jsonl": {"forget": (str(unknown),)},
        "is not what the export read under": {"forget": (f"{forget},limit=100",)},
        "--retain: give retain.jsonl again": {"retain": ()},
        "give the export's sources again": {"forget": ()},
        "--system-prompt: the export had 0": {"system_prompts": ("Be brief.",)},
        "--prompt-template: is not the export's": {"prompt_template": "Q: {prompt}"},
    }
    for message, changes in refused.items():
        with pytest.raises(BadInput, match=re.escape(message)):
            tried.write(tmp_path / "out", **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_prompts_in_other_parts_are_refused(made: Callable[[str], Made], tmp_path: Path) -> None:
    """Another unskill may split or draw otherwise; the records say so."""
    with (
        mock.patch("exporter.splits.CHOOSE", 0.2),
        pytest.raises(BadInput, match=r"part forget\.fit of skill is not what the export had"),
    ):
        made("ksd").write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_no_other_way_to_quantised_weights(made: Callable[[str], Made], tmp_path: Path) -> None:
    checkpoint = str(made("ksd").checkpoint)
    for name in ("int8", "int4"):
        done = CliRunner().invoke(cli, ["onnx", checkpoint, str(tmp_path / "out"), "--dtype", name])
        assert isinstance(done.exception, BadInput) and f"--quantize {name} --forget SOURCE" in str(done.exception)
        with pytest.raises(BadInput, match=f"--quantize {name}"):
            OnnxSettings(checkpoint, tmp_path / "out", dtype=name)
    with pytest.raises(BadInput, match="int8 or int4, not int2"):
        OnnxSettings(checkpoint, tmp_path / "out", quantize="int2")
    with pytest.raises(BadInput, match="leave out float16"):
        OnnxSettings(checkpoint, tmp_path / "out", quantize="int8", dtype="float16")
    for changes in ({"retain": ("r.jsonl",)}, {"force": True}, {"answers": False}, {"max_false_block": 0.1}):
        with pytest.raises(BadInput, match="for --quantize"):
            OnnxSettings(checkpoint, tmp_path / "out", **changes)
    with pytest.raises(BadInput, match="give the export's sources again"):
        write_onnx(OnnxSettings(checkpoint, tmp_path / "out", quantize="int8"), lambda text: None)
    assert list(tmp_path.iterdir()) == []


def test_two_skills_that_adjust_neurons_are_refused_by_name(made: Callable[[str], Made], tmp_path: Path) -> None:
    stored = read_stored(str(made("ksd").checkpoint))
    (skill,) = stored.recipe["skills"]
    both = [{**skill, "name": name, "method": "na"} for name in ("sums", "code")]
    with pytest.raises(BadInput, match="sums and code adjust neurons"):
        check_refittable(replace(stored, recipe={**stored.recipe, "skills": both}), made("ksd").settings(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sp", "na"])
def test_methods_that_refuse_nothing(method: str, tiny: Callable[..., Exported], tmp_path: Path) -> None:
    """Pruned neurons depend on no activation and need no prompts; adjusted ones do."""
    exported = tiny("llama", method)
    sources = {} if method == "sp" else {side: (str(exported.prompts.with_name(f"{side}.jsonl")),) for side in TEXTS}
    settings = OnnxSettings(str(exported.checkpoint), tmp_path / "out", quantize="int8", quiet=True, **sources)
    with one_thread():
        summary = write_onnx(settings, lambda text: None)
    assert summary["agrees"] is True
    assert [each["name"] for each in summary["skills"]] == ([] if method == "sp" else ["skill"])
    if method == "na":
        texts = summary["skills"][0]["neurons"]["texts"]
        assert texts.keys() == {"skill: forget", "skill: retain"} and texts["skill: forget"]["rise"] != 0


@pytest.mark.slow
def test_as_a_user_runs_it(made: Callable[[str], Made], tmp_path: Path) -> None:
    tried = made("ksd")
    command = ["onnx", str(tried.checkpoint), str(tmp_path / "out"), "--quantize", "int4", "--max-false-block", "1"]
    command += [f"--{side}={spec}" for side, spec in tried.sources.items()]
    with one_thread():
        done = CliRunner().invoke(cli, command)
    assert done.exception is None and "Wrote" in done.stdout and "held-out prompts" in done.stdout
    assert (tmp_path / "out" / GRAPH["int4"]).is_file()
