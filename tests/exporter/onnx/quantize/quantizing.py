"""Checkpoints to be quantized, and their graphs as tests read them, who trust nothing of ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from exporter.onnx.quantize.run import write_quantized
from exporter.onnx.settings import OnnxSettings
from exporter.recipes.recipe import merged_settings
from exporter.recipes.settings import ExportSettings
from tests.tiny import FORGET, FORGET_MORE, RETAIN, TEMPLATE, one_thread

TEXTS = {"forget": FORGET + FORGET_MORE, "retain": RETAIN}
TARGET = 0.8
LAYER = 1
BOUNDS = f"model.model.layers.{LAYER}.mlp.unskill_ksd_bounds"


CUBE = {"layer": LAYER, "region": "hypercube", "target_block_rate": TARGET}
NEURONS = {"beta": 20.0, "score": "effect-size"}
TURNS = {"layer": LAYER, "region": "discriminant", "alpha": 0.4}
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "ksd": CUBE,
    "na+ksd": CUBE | NEURONS,
    # Half-spaces: with a calibrated threshold, on a base that has no chat template; in every kind of turn, where the
    # places look alike in a random model; and beside a hypercube in one layer, on adjusted neurons.
    "regions": {"layer": 0, "region": "discriminant", "prompt_template": TEMPLATE, "max_false_block": 0.1},
    "turns": TURNS,
    "two": TURNS | NEURONS | {"prompt_template": TEMPLATE},
}
"""Settings of the exports that tests quantize. The second skill of "two" is a hypercube around what is answered
otherwise."""


def export_settings(which: str, base: Path, out: Path, sources: dict[str, str]) -> ExportSettings:
    common = {"prompt_template": "{prompt}", "force": True, "quiet": True, "figures": False}
    if which == "turns":
        common["prompt_template"] = "auto"
    own = dict(CHECKPOINTS[which])
    common |= {name: own.pop(name) for name in ("prompt_template",) if name in own}
    own["method"] = "na+ksd" if "beta" in own else "ksd"
    skill = {"name": "skill", "everyday": False, **own, **{side: [spec] for side, spec in sources.items()}}
    skills = [skill]
    if which == "two":
        swapped = {"forget": skill["retain"], "retain": skill["forget"]}
        skills.append({"name": "letters", "everyday": False, **CUBE, **swapped})
    return merged_settings({"skill": skills}, {"model": str(base), "out": out, **common})


class Made(NamedTuple):
    """A checkpoint, its sources by side, and its graph in float32.

    budget: the greatest share of false blocks, None for the export's."""

    checkpoint: Path
    sources: dict[str, tuple[str, ...]]
    graph: Path
    budget: float | None

    def settings(self, out: Path, kind: str = "int4", **changes: Any) -> OnnxSettings:
        given = {"quantize": kind, "max_false_block": self.budget, "quiet": True, **self.sources, **changes}
        return OnnxSettings(str(self.checkpoint), out, **given)

    def write(self, out: Path, kind: str = "int4", kernels: Sequence[Path] = (), **changes: Any) -> dict[str, Any]:
        """As the command does, but that what it traces has been traced before."""

        def traced(model: Any, path: Path) -> None:
            shutil.copytree(self.graph.parent, path.parent, dirs_exist_ok=True)

        with (
            one_thread(),
            mock.patch("exporter.onnx.quantize.run.write_graph", traced),
            mock.patch("exporter.onnx.quantize.run.built_libraries", lambda: list(kernels)),
        ):
            summary = write_quantized(self.settings(out, kind, **changes), lambda text: None)
        return json.loads(json.dumps(summary))

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return AutoTokenizer.from_pretrained(self.checkpoint)

    def part(self, name: str) -> list[list[int]]:
        """Token ids of one part of the export, by the rows that it recorded."""
        rows = json.loads((self.checkpoint / "reproduce" / "prompts.json").read_text())["skill"][name]
        texts = TEXTS[name.removeprefix("texts.").split(".")[0]]
        return [self.tokenizer(texts[row["row"] - 1])["input_ids"] for row in rows]


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


def not_quantized(source: Path, target: Path, kind: str) -> int:
    """In the place of `quantize`: the graph in float32."""
    shutil.copyfile(source, target)
    shutil.copyfile(f"{source}_data", target.with_name("model.onnx_data"))
    shutil.copyfile(f"{source}_data", f"{target}_data")
    return 0


def floored(deviation: np.ndarray) -> np.ndarray:
    return np.maximum(deviation, 1e-3 * np.median(deviation))
