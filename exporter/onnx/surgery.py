"""Interventions in a graph file: where they are, and the graph with other constants and other outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from custom_modeling.buffers import KSD_BOUNDS, in_mlp
from exporter.common.errors import RunFailed
from exporter.onnx.operators import KEY_SPACE_DETECT, NEURON_ADJUST

LEAST = ".unskill_constants.least"
BOUNDS = re.compile(r"\b" + in_mlp(r"(\d+)", KSD_BOUNDS) + "$")
STANDARDISERS = re.compile(r"\bunskill_constants\.standardisers_(\d+)$")


@dataclass(frozen=True)
class Places:
    """Names of tensors, by layer in ascending order; see `exporter.onnx.symbolic`.

    keys, bounds: what KeySpaceDetect reads; values, standardisers: pre-activations and what they are adjusted by;
    least: the thresholds that all layers have in common, None where no neuron is adjusted.
    """

    keys: Mapping[int, str]
    bounds: Mapping[int, str]
    values: Mapping[int, str]
    standardisers: Mapping[int, str]
    least: str | None


def find_places(path: Path) -> Places:
    """Raises RunFailed where an operator reads a constant that is not named as the export names it."""
    graph = onnx.load(path, load_external_data=False).graph
    keys, values = read_by(graph, KEY_SPACE_DETECT, 1, BOUNDS), read_by(graph, NEURON_ADJUST, 3, STANDARDISERS)
    least = next((tensor.name for tensor in graph.initializer if tensor.name.endswith(LEAST)), None)
    if values and least is None:
        raise RunFailed(f"the graph adjusts neurons but has no {LEAST}")
    return Places(
        {layer: node.input[0] for layer, node in keys.items()},
        {layer: node.input[1] for layer, node in keys.items()},
        {layer: node.input[0] for layer, node in values.items()},
        {layer: node.input[3] for layer, node in values.items()},
        least,
    )


def read_by(graph: onnx.GraphProto, operator: str, place: int, pattern: re.Pattern[str]) -> dict[int, onnx.NodeProto]:
    """The nodes of one operator by the layer that the name of their input at `place` gives."""
    found = {}
    for node in graph.node:
        if node.op_type == operator:
            match = pattern.search(node.input[place])
            if match is None:
                raise RunFailed(f"{operator} reads {node.input[place]}, which is no constant of a layer")
            found[int(match[1])] = node
    return dict(sorted(found.items()))


def read_constants(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Values of initializers by name."""
    wanted = set(names)
    graph = onnx.load(path, load_external_data=False).graph
    return {
        tensor.name: numpy_helper.to_array(whole(tensor, path))
        for tensor in graph.initializer
        if tensor.name in wanted
    }


def whole(tensor: onnx.TensorProto, path: Path) -> onnx.TensorProto:
    """An initializer of the graph at `path` with its values in it.

    Not by onnx: that reads no file which is a link, or has a second name, as files of a cache or a copy may.
    """
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return tensor
    found = {entry.key: entry.value for entry in tensor.external_data}
    with path.with_name(found["location"]).open("rb") as file:
        file.seek(int(found.get("offset", 0)))
        values = file.read(int(found["length"]))
    return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=values)


def patched(
    path: Path, constants: Mapping[str, np.ndarray], taps: Sequence[str] = (), alone: bool = False
) -> onnx.ModelProto:
    """The graph at `path` with other constants and outputs; its weights are still in the file beside `path`.

    constants: new values by name of initializers; taps: names of float32 tensors that become outputs too, after the
    graph's own; alone: they become the only ones, and nodes that none of them needs are left out.

    Raises RunFailed where there is no such initializer.
    """
    model = onnx.load(path, load_external_data=False)
    graph, missing = model.graph, set(constants)
    for tensor in graph.initializer:
        if tensor.name in constants:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(constants[tensor.name]), tensor.name))
            missing.remove(tensor.name)
    if missing:
        raise RunFailed(f"the graph has no constant {sorted(missing)[0]}")
    if alone:
        nodes = needed(graph, taps)
        del graph.output[:], graph.node[:]
        graph.node.extend(nodes)
    graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in taps)
    return model


def needed(graph: onnx.GraphProto, outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes on which these tensors depend, in the order of the graph."""
    wanted, found = set(outputs), []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            found.append(node)
    return [copied(node) for node in reversed(found)]


def copied(node: onnx.NodeProto) -> onnx.NodeProto:
    """A copy that outlives the list that the node is in."""
    found = onnx.NodeProto()
    found.CopyFrom(node)
    return found
