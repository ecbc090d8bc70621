"""Interventions in a graph file: where they are, and copies of the file with other constants and other outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from exporter.errors import RunFailed
from exporter.onnx.operators import KEY_SPACE_DETECT, NEURON_ADJUST

LEAST = ".unskill_constants.least"
BOUNDS = re.compile(r"\blayers\.(\d+)\.mlp\.unskill_ksd_bounds$")
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


def rewrite(
    path: Path, target: Path, constants: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
) -> None:
    """Write the graph at `path` to `target`, in the same folder, where its weights are.

    constants: new values by name of initializers. outputs: names of float32 tensors that become the graph's outputs,
    after those of its own that are among them; nodes that none of them needs are left out. None: as they were.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    unknown = set(constants)
    for tensor in graph.initializer:
        if tensor.name in constants:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(constants[tensor.name]), tensor.name))
            unknown.remove(tensor.name)
    if unknown:
        raise RunFailed(f"the graph has no {sorted(unknown)[0]}")
    if outputs is not None:
        own = {value.name: value for value in graph.output}
        kept = [value for name, value in own.items() if name in outputs]
        taps = [name for name in outputs if name not in own]
        kept += [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in taps]
        nodes = needed(graph, [*own, *taps] if len(kept) == len(own) + len(taps) else list(outputs))
        del graph.output[:], graph.node[:]
        graph.output.extend(kept)
        graph.node.extend(nodes)
    onnx.save(model, target)


def needed(graph: onnx.GraphProto, outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes on which these tensors depend, in the order of the graph."""
    wanted, found = set(outputs), []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            found.append(node)
    return [*map(copied, reversed(found))]


def copied(node: onnx.NodeProto) -> onnx.NodeProto:
    """A copy that outlives the list that the node is in."""
    found = onnx.NodeProto()
    found.CopyFrom(node)
    return found
