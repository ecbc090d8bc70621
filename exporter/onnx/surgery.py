"""Interventions in a graph file: the names of their tensors, and the graph with other constants and outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from custom_modeling.buffers import KSD_BOUNDS, KSD_DIRECTIONS, KSD_LIMITS, in_mlp
from exporter.common.errors import RunFailed
from exporter.onnx.operators import KEY_SPACE_DETECT, NEURON_ADJUST, REGION_DETECT

LEAST = ".unskill_constants.least"
BOUNDS, DIRECTIONS, LIMITS = (
    re.compile(r"\b" + in_mlp(r"(\d+)", name) + "$") for name in (KSD_BOUNDS, KSD_DIRECTIONS, KSD_LIMITS)
)
STANDARDISERS = re.compile(r"\bunskill_constants\.standardisers_(\d+)$")


@dataclass(frozen=True)
class Places:
    """Names of tensors, by layer in ascending order; see `exporter.onnx.symbolic`.

    keys: what KeySpaceDetect and RegionDetect look at; bounds: of KeySpaceDetect; directions, limits: of RegionDetect;
    in a layer with both operators each region has one of each, which read its parts of these constants; values,
    standardisers: pre-activations and the constants that adjust them; least: the least thresholds, one tensor for all
    layers; None where no neuron is adjusted.
    """

    keys: Mapping[int, str]
    bounds: Mapping[int, str]
    directions: Mapping[int, str]
    limits: Mapping[int, str]
    values: Mapping[int, str]
    standardisers: Mapping[int, str]
    least: str | None

    @property
    def regions(self) -> dict[str, str]:
        """The constants of the regions by the checkpoint's buffers."""
        sides = ((KSD_BOUNDS, self.bounds), (KSD_DIRECTIONS, self.directions), (KSD_LIMITS, self.limits))
        return {in_mlp(layer, buffer): name for buffer, names in sides for layer, name in names.items()}


class Read(NamedTuple):
    """Of a node's inputs the first one, and a constant."""

    first: str
    constant: str


def find_places(path: Path) -> Places:
    """The names in the graph at `path`. Raises RunFailed where a constant's name is not one that the export gives."""
    graph = onnx.load(path, load_external_data=False).graph
    bounds, values = read_by(graph, KEY_SPACE_DETECT, 1, BOUNDS), read_by(graph, NEURON_ADJUST, 3, STANDARDISERS)
    directions, limits = read_by(graph, REGION_DETECT, 1, DIRECTIONS), read_by(graph, REGION_DETECT, 2, LIMITS)
    least = next((tensor.name for tensor in graph.initializer if tensor.name.endswith(LEAST)), None)
    if values and least is None:
        raise RunFailed(f"the graph adjusts neurons but has no {LEAST}")
    return Places(
        {layer: read.first for layer, read in sorted((bounds | limits).items())},
        {layer: read.constant for layer, read in bounds.items()},
        {layer: read.constant for layer, read in directions.items()},
        {layer: read.constant for layer, read in limits.items()},
        {layer: read.first for layer, read in values.items()},
        {layer: read.constant for layer, read in values.items()},
        least,
    )


def read_by(graph: onnx.GraphProto, operator: str, place: int, pattern: re.Pattern[str]) -> dict[int, Read]:
    """What the nodes of one operator read, by the layer in the name of the constant at `place`.

    Where a node reads a slice of a constant, the constant counts.
    """
    whole = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Slice"}
    found = {}
    for node in graph.node:
        if node.op_type == operator:
            name = whole.get(node.input[place], node.input[place])
            match = pattern.search(name)
            if match is None:
                raise RunFailed(f"{operator} reads {name}, which is not a constant of a layer")
            found[int(match[1])] = Read(node.input[0], name)
    return dict(sorted(found.items()))


def read_constants(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Values of initializers by name.

    External data is read here: onnx refuses files that are links or have a second name, as in a cache or a copy.
    """
    wanted, found = set(names), {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.name not in wanted:
            continue
        if uses_external_data(tensor):
            data, dtype = ExternalDataInfo(tensor), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            values = np.fromfile(path.with_name(data.location), dtype, prod(tensor.dims), offset=data.offset or 0)
            found[tensor.name] = values.reshape(tensor.dims)
        else:
            found[tensor.name] = numpy_helper.to_array(tensor)
    return found


def patched(
    path: Path, constants: Mapping[str, np.ndarray], taps: Sequence[str] = (), alone: bool = False
) -> onnx.ModelProto:
    """The graph at `path` with other constants and outputs; its weights stay in the file beside `path`.

    constants: new values by initializer; taps: names of float32 tensors that become outputs, after the graph's own;
    alone: they become the only outputs, and nodes that they do not depend on are left out.

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
        del graph.output[:]
        wanted = set(taps)
        for place in reversed(range(len(graph.node))):
            if wanted.intersection(graph.node[place].output):
                wanted.update(graph.node[place].input)
            else:
                del graph.node[place]
    graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in taps)
    return model
