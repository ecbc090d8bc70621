"""`unskill onnx --quantize`: interventions fitted on the quantized graph.

What they have to be is computed here once more, with numpy, from activations that the test takes out of the graph that
was written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from safetensors.torch import load_file
from scipy.stats import beta
from transformers import AutoModelForCausalLM

from exporter.onnx.graph import write_graph
from exporter.onnx.operators import DOMAIN
from exporter.onnx.quantize.weights import quantize
from exporter.onnx.settings import GRAPH
from tests.exporter.onnx.quantize.quantizing import (
    BOUNDS,
    LAYER,
    TARGET,
    Graph,
    Made,
    constants,
    floored,
    nodes,
    not_quantized,
    refusals,
)
from tests.tiny import one_thread, tiny_model

pytestmark = pytest.mark.slow

CASES = [
    ("ksd", "int8"),
    ("ksd", "int4"),
    pytest.param("na+ksd", "int8", marks=pytest.mark.slow),
    pytest.param("na+ksd", "int4", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_hypercube_is_that_of_the_quantized_graphs_keys(
    method: str, kind: str, quantized: Callable[..., tuple[Made, Path, dict[str, Any]]]
) -> None:
    made, folder, summary = quantized(method, kind)
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
    method: str, kind: str, quantized: Callable[..., tuple[Made, Path, dict[str, Any]]]
) -> None:
    """Counted anew, by the file: with its own bounds, and with those that were fitted in float32."""
    made, folder, summary = quantized(method, kind)
    (skill,) = summary["skills"]
    found, path = skill["key_space"], folder / GRAPH[kind]
    refused = refusals(path, made, ["forget.report"])
    assert refused == found["blocked"]["forget.jsonl"]["all"]["hits"]
    assert refusals(path, made, ["forget.calibrate"]) >= TARGET * found["alpha"]["calibrated_on"]
    old = load_file(sorted(made.checkpoint.glob("*.safetensors"))[-1])[BOUNDS.removeprefix("model.")].numpy()
    assert refusals(path, made, ["forget.report"], {BOUNDS: old}) == found["blocked_without_refitting"]["hits"]


def test_what_int4_weights_lose_is_had_back(quantized: Callable[..., tuple[Made, Path, dict[str, Any]]]) -> None:
    """The bounds of float32 refuse fewer than half of the prompts that were held out; those fitted anew most."""
    made, folder, _ = quantized("ksd", "int4")
    path, held_out = folder / GRAPH["int4"], ["forget.report", "forget.choose"]
    total = sum(len(made.part(part)) for part in held_out)
    old = load_file(sorted(made.checkpoint.glob("*.safetensors"))[-1])[BOUNDS.removeprefix("model.")].numpy()
    assert refusals(made.graph, made, held_out) >= 0.6 * total
    assert refusals(path, made, held_out, {BOUNDS: old}) <= 0.5 * total
    assert refusals(path, made, held_out) >= 0.7 * total


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_distributions_are_those_of_the_quantized_graphs_pre_activations(
    kind: str, quantized: Callable[..., tuple[Made, Path, dict[str, Any]]]
) -> None:
    made, folder, _ = quantized("na+ksd", kind)
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
def test_without_quantizing_it_is_what_the_export_fitted(made: Callable[[str], Made], tmp_path: Path) -> None:
    """The same way through ONNX Runtime, on the graph in float32."""
    tried = made("na+ksd")

    with mock.patch("exporter.onnx.quantize.run.quantize", not_quantized):
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


def test_a_head_of_its_own_is_not_quantized(tmp_path: Path) -> None:
    """Where nothing is refused its weight is a constant of a plain product, as those of the projections are."""
    base = tiny_model(tmp_path / "base", chat=False, tie_word_embeddings=False)
    with one_thread():
        write_graph(AutoModelForCausalLM.from_pretrained(base).eval(), tmp_path / "model.onnx")
    assert quantize(tmp_path / "model.onnx", tmp_path / "model_int8.onnx", "int8") == 3 * 7
    assert "logits" in [node.output[0] for node in nodes(tmp_path / "model_int8.onnx", "MatMul")]
    assert len(nodes(tmp_path / "model_int8.onnx", "MatMulNBits")) == 3 * 7


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_projections_are_quantized_and_nothing_else(
    kind: str, quantized: Callable[..., tuple[Made, Path, dict[str, Any]]]
) -> None:
    made, folder, summary = quantized("ksd", kind)
    path = folder / GRAPH[kind]
    graph = onnx.load(path, load_external_data=False)
    held = {tensor.name: tensor for tensor in graph.graph.initializer}
    assert not [node.name for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in held]
    quantized_nodes = [node for node in graph.graph.node if node.op_type == "MatMulNBits"]
    assert len(quantized_nodes) == 3 * 7  # query, key, value, output, gate, up, down
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
