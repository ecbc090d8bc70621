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
from tests.tiny import FORGET, FORGET_MORE, RETAIN, one_thread

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


def floored(deviation: np.ndarray) -> np.ndarray:
    return np.maximum(deviation, 1e-3 * np.median(deviation))
