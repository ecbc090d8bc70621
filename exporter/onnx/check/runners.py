"""The same forwards by torch and by ONNX Runtime, and how close their decisions are to a threshold."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as state
from transformers import DynamicCache

from custom_modeling.buffers import KSD_BOUNDS, KSD_LIMITS
from custom_modeling.key_space import coordinates
from exporter.common.errors import RunFailed, first_line
from exporter.methods.key_space.hypercubes import opened_bounds
from exporter.models.tokens import positions_of
from exporter.onnx.graph import cache_names, check_data, weights_of
from exporter.onnx.library import register
from exporter.onnx.surgery import find_places, patched, read_constants

Array = np.ndarray
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3}
"""A decision this close to its threshold, relative to it, may differ by rounding in another backend or batch."""
EDGE = 2e-2
"""The same for regions after adjusted neurons: a neuron that is decided differently moves the keys."""
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime's option for the folder of the weights, for a graph that is not loaded from a file."""
# What ONNX Runtime raises for graphs that it does not take; Exception is their only common base.
REFUSALS = (
    *(state.EPFail, state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf),
    *(state.NoModel, state.NoSuchFile, state.NotImplemented, state.RuntimeException),
)


class Runner(Protocol):
    """Forwards of one model.

    After a forward, close: how many decisions in each row were close to their threshold; edge: how many of the
    regions' decisions were, or were within EDGE of it where neurons are adjusted.
    """

    close: Array
    edge: Array

    def forward(self, ids: Array, mask: Array | None = None, past: Any = None) -> tuple[Array, Any]:
        """Logits (batch, positions, vocabulary) and the cache; ids: (batch, positions) int64.

        mask: (batch, past and positions) int64, None where all are tokens; past: the cache of the forward before.
        """


def position_ids(mask: Array, count: int) -> Array:
    """Position ids (batch, count) of a left-padded batch."""
    return positions_of({"attention_mask": torch.from_numpy(mask)})[:, -count:].numpy()


class Session(Runner):
    """A graph that `write_graph` has written, in ONNX Runtime on the CPU.

    kernels: our library of operators, or None for their bodies; arena: keep the memory of a forward for the next one,
    which is faster and takes more; changed: a graph to load instead of the one at `path`, with the weights there (see
    `exporter.onnx.surgery.patched`). Nothing is written. Its decisions are not known: `close` and `edge` are 0.

    Raises RunFailed where the library, the weights or the graph cannot be loaded.
    """

    def __init__(
        self, path: Path, kernels: Path | None = None, arena: bool = True, changed: onnx.ModelProto | None = None
    ) -> None:
        check_data(path)
        options = onnxruntime.SessionOptions()
        options.enable_cpu_mem_arena = arena
        options.log_severity_level = 3
        # More threads than torch's would spin while they wait, and take cores from other processes.
        options.intra_op_num_threads = torch.get_num_threads()
        if kernels is not None and not register(options, kernels):
            raise RunFailed(f"{kernels.name} cannot be loaded: build it anew with unskill build-ops")
        source = str(path) if changed is None else in_memory(changed, path, options)
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except REFUSALS as error:
            version = onnxruntime.__version__
            raise RunFailed(f"{path.name} does not load in ONNX Runtime {version}: {first_line(error)}") from error
        self._name = path.name
        inputs = {each.name: each for each in self._session.get_inputs()}
        self._names = cache_names("past_key_values", sum(name.endswith(".key") for name in inputs))
        first = inputs[self._names[0]]
        self._heads, self._size, self._dtype = first.shape[1], first.shape[3], TYPES[first.type]

    def forward(self, ids: Array, mask: Array | None = None, past: Any = None) -> tuple[Array, Any]:
        self.close = self.edge = np.zeros(len(ids), np.int64)
        logits, *cache = self.outputs(ids, mask, past)
        return logits, cache

    def outputs(self, ids: Array, mask: Array | None = None, past: Any = None) -> list[Array]:
        """All outputs of the graph; arguments as for `Runner.forward`."""
        if past is None:
            past = [np.zeros((len(ids), self._heads, 0, self._size), self._dtype)] * len(self._names)
        if mask is None:
            mask = np.ones((len(ids), past[0].shape[2] + ids.shape[1]), np.int64)
        fed = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask, ids.shape[1])}
        try:
            found: list[Array] = self._session.run(None, fed | dict(zip(self._names, past, strict=True)))
        except REFUSALS as error:
            raise RunFailed(f"{self._name} fails in ONNX Runtime: {first_line(error)}") from error
        return found


class Torch(Runner):
    """A loaded checkpoint.

    greatest: after a forward, for each layer with regions the largest absolute number of each key that they bound: of
    the key itself, of its coordinates along directions, or of both; (batch, positions).
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.greatest: list[Array] = []

    @torch.inference_mode()
    def forward(self, ids: Array, mask: Array | None = None, past: Any = None) -> tuple[Array, Any]:
        past = DynamicCache() if past is None else past
        if mask is None:
            mask = np.ones((len(ids), past.get_seq_length() + ids.shape[1]), np.int64)
        with self._decisions(torch.from_numpy(mask[:, -ids.shape[1] :]).bool()):
            output = self._model(
                input_ids=torch.from_numpy(ids),
                attention_mask=torch.from_numpy(mask),
                position_ids=torch.from_numpy(position_ids(mask, ids.shape[1])),
                past_key_values=past,
                use_cache=True,
            )
        return output.logits.numpy(), output.past_key_values

    @contextmanager
    def _decisions(self, real: torch.Tensor) -> Iterator[None]:
        """Count close decisions of the runtime during a forward."""
        runtime = sys.modules[type(self._model).__module__]
        adjust, inside = runtime.adjust, runtime.inside_hypercubes
        inside_regions: Any = getattr(runtime, "inside_regions", None)  # format 1 has none
        close, edge = torch.zeros(2, len(real), dtype=torch.int64)
        least = CLOSE[self._model.dtype]
        wide = EDGE if self._model.model.unskill_layers["adjusted"] else least
        greatest: list[Array] = []

        def adjusted(value: torch.Tensor, index: torch.Tensor, threshold: torch.Tensor, *standard: Any) -> Any:
            scale_f, offset_f, scale_r, offset_r = standard[:4]
            v = value.index_select(-1, index).float()
            ratio = (offset_r + v * scale_r) ** 2 - (offset_f + v * scale_f) ** 2
            near = (ratio - threshold).abs() <= least * threshold.abs().clamp(min=1)
            close.add_((near & threshold.isfinite()).sum(-1).mul(real).sum(-1))
            return adjust(value, index, threshold, *standard)

        def count(outside: torch.Tensor) -> None:
            """outside: of a region, (batch, positions, numbers that it bounds), relative to their scale; inside it is
            negative. A NaN is inside, and so is what an infinite limit leaves free."""
            distance = outside.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(-1).abs()
            close.add_((distance <= least).mul(real).sum(-1))
            edge.add_((distance <= wide).mul(real).sum(-1))

        def outside_cube(key: torch.Tensor, cube: torch.Tensor) -> torch.Tensor:
            lower, upper = cube
            return torch.maximum(lower - key.float(), key.float() - upper) / (upper - lower)

        def held(key: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
            greatest.append(key.float().abs().amax(-1).numpy())
            for cube in bounds:
                count(outside_cube(key, cube))
            return inside(key, bounds)

        def held_by_regions(
            key: torch.Tensor, directions: torch.Tensor, limits: torch.Tensor, bounds: torch.Tensor | None = None
        ) -> torch.Tensor:
            found, scale = coordinates(key, directions), coordinates(key.abs(), directions.abs())
            bounded = found if bounds is None else torch.cat([found, key.float()], -1)
            greatest.append(bounded.abs().amax(-1).numpy())
            for place, (lower, upper) in enumerate(limits):
                outside = torch.maximum(lower - found, found - upper) / scale
                count(outside if bounds is None else torch.cat([outside, outside_cube(key, bounds[place])], -1))
            # The checkpoint's own function calls the other one, whose keys are counted here already.
            with mock.patch.object(runtime, "inside_hypercubes", inside):
                return inside_regions(key, directions, limits, bounds)

        watched: Any = {"adjust": adjusted, "inside_hypercubes": held}
        if inside_regions is not None:
            watched["inside_regions"] = held_by_regions
        with mock.patch.multiple(runtime, **watched):
            yield
        self.close, self.edge, self.greatest = close.numpy(), edge.numpy(), greatest


class Recorded(Runner):
    """The forwards of another runner, in their order, replayed once it is no longer in memory.

    file: open for reading and writing; a position takes 4 bytes per vocabulary entry, 2 in float16.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def record(self, runner: Runner, ids: Array, mask: Array, past: Any = None) -> Any:
        """Run a forward and keep its results; returns its cache."""
        logits, past = runner.forward(ids, mask, past)
        for each in (logits, runner.close, runner.edge):
            np.save(self._file, each, allow_pickle=False)
        return past

    def rewind(self) -> None:
        self._file.seek(0)

    def forward(self, ids: Array, mask: Array | None = None, past: Any = None) -> tuple[Array, Any]:
        """The next recorded forward; the caller passes the same ids."""
        logits, self.close, self.edge = (np.load(self._file, allow_pickle=False) for _ in range(3))
        assert logits.shape[:2] == ids.shape
        return logits, None


@contextmanager
def opened_model(model: Any, within: Sequence[float] = ()) -> Iterator[None]:
    """While this runs, every token is inside the loaded checkpoint's regions.

    within: by layer with regions, the reach of opened ones, which is that of all numbers that they bound (see
    `opened_bounds` and `Torch`); without limit by default.
    """
    layers = [
        found
        for module in model.modules()
        if (found := [each for name, each in module.named_buffers("", False) if name in (KSD_BOUNDS, KSD_LIMITS)])
    ]
    kept = [[tensor.clone() for tensor in found] for found in layers]
    try:
        for found, each in zip(layers, within or [np.inf] * len(layers), strict=True):
            for tensor in found:
                tensor.copy_(opened_bounds(tensor.shape, each))
        yield
    finally:
        for found, before in zip(layers, kept, strict=True):
            for tensor, values in zip(found, before, strict=True):
                tensor.copy_(values)


def opened_graph(path: Path, within: Sequence[float] = ()) -> onnx.ModelProto:
    """The graph at `path` with every token inside its regions; see `opened_model`."""
    places = find_places(path)
    reach = dict(zip(places.keys, within or [np.inf] * len(places.keys), strict=True))
    names = {name: reach[layer] for side in (places.bounds, places.limits) for layer, name in side.items()}
    held = read_constants(path, names)
    return patched(path, {name: opened_bounds(held[name].shape, each).numpy() for name, each in names.items()})


def in_memory(graph: onnx.ModelProto, path: Path, options: onnxruntime.SessionOptions) -> bytes:
    """What a session loads instead of the graph at `path`; the options get the folder of its weights.

    The weights are named by their real file: in the Hub's cache the one beside `path` is a link to it.
    """
    weights = weights_of(path).resolve()
    options.add_session_config_entry(WEIGHTS_FOLDER, str(weights.parent))
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    for tensor in copy.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = weights.name
    return copy.SerializeToString()
