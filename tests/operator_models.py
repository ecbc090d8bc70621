"""Models of one custom operator each, sessions that run them by its body or by its kernel, and inputs for them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from custom_modeling.key_space import coordinates
from custom_modeling.neuron_adjust import standardisers, thresholds
from exporter.onnx.operators import (
    DOMAIN,
    KEY_SPACE_DETECT,
    NEURON_ADJUST,
    NEURON_DRAWS,
    OPSET,
    REGION_DETECT,
    VERSION,
    functions,
)

ERRORS = (Fail, InvalidArgument, RuntimeException)
INF, NAN = float("inf"), float("nan")
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
# Every dimension free, so that it is the operators and not ONNX Runtime who find wrong shapes.
SIGNATURES = {
    NEURON_DRAWS: (
        {"position_ids": (INT64, 2), "token_ids": (INT64, 2), "keys": (INT64, 1)},
        {"draws": (FLOAT, 3)},
    ),
    NEURON_ADJUST: (
        {"pre_activation": (FLOAT, 3), "index": (INT64, 1), "threshold": (FLOAT, 3), "standardisers": (FLOAT, 2)},
        {"adjusted": (FLOAT, 3)},
    ),
    KEY_SPACE_DETECT: ({"key": (FLOAT, 3), "bounds": (FLOAT, 3)}, {"hit": (BOOL, 2)}),
    REGION_DETECT: ({"key": (FLOAT, 3), "directions": (FLOAT, 2), "limits": (FLOAT, 3)}, {"hit": (BOOL, 2)}),
}


def model(name: str) -> onnx.ModelProto:
    """A model whose only node is the operator; IR version 10, which ONNX Runtime 1.20 reads too."""
    inputs, outputs = (
        [
            helper.make_tensor_value_info(each, kind, [f"{each}_{i}" for i in range(rank)])
            for each, (kind, rank) in side.items()
        ]
        for side in SIGNATURES[name]
    )
    node = helper.make_node(name, [each.name for each in inputs], [each.name for each in outputs], domain=DOMAIN)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph([node], name, inputs, outputs)
    return helper.make_model(graph, functions=functions(), opset_imports=imports, ir_version=10)


def options(library: Path | None = None, optimised: bool = True) -> onnxruntime.SessionOptions:
    """With the kernels of `library`, if one is given."""
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = 1
    made.log_severity_level = 4  # failing runs are part of the tests
    levels = onnxruntime.GraphOptimizationLevel
    made.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    if library is not None:
        made.register_custom_ops_library(str(library))
    return made


def session(
    name: str, chosen: onnxruntime.SessionOptions, provider: str = "CPUExecutionProvider"
) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model(name).SerializeToString(), chosen, providers=[provider])


def run(made: onnxruntime.InferenceSession, **tensors: torch.Tensor) -> torch.Tensor:
    (output,) = made.run(None, {name: tensor.contiguous().numpy() for name, tensor in tensors.items()})
    return torch.from_numpy(output)


def cuda_launcher(library: Path) -> Callable[..., None]:
    """launch(name, stream, *tensors and sizes) starts a kernel of a library that was built for CUDA."""
    functions = ctypes.CDLL(str(library))

    def launch(name: str, stream: torch.cuda.Stream, *arguments: torch.Tensor | int) -> None:
        values = [each.data_ptr() if isinstance(each, torch.Tensor) else each for each in arguments]
        # Pointers and int64 alike are 64 bits wide.
        code = getattr(functions, f"unskill_cuda_{name}")(*map(ctypes.c_int64, [*values, stream.cuda_stream]))
        assert code == 0, f"cudaError_t {code}"

    return launch


def bits(values: torch.Tensor) -> torch.Tensor:
    """The bits of floats, with which a NaN equals itself and -0 is not 0."""
    return values.contiguous().view(torch.int32)


def neurons(
    batch: int, positions: int, width: int, count: int, seed: int = 0
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs of NeuronAdjust, and its params, of which the forget side fits about half of all values."""
    generator = torch.Generator().manual_seed(seed)
    value = 2 * torch.randn(batch, positions, width, generator=generator)
    index = torch.randperm(width, generator=generator)[:count]
    params = torch.randn(4, count, generator=generator)
    params[1::2] = params[1::2].abs() + 0.1
    draws = torch.rand(batch, positions, count, generator=generator)
    threshold = thresholds(params, draws, torch.arange(positions).expand(batch, positions))
    return {
        "pre_activation": value,
        "index": index,
        "threshold": threshold,
        "standardisers": torch.stack(standardisers(params)),
    }, params


SHAPES = [(2, 5, 16, 6), (1, 1, 64, 64), (3, 1, 7, 1), (1, 1, 1, 1), (2, 150, 300, 128)]
EMPTY = [(0, 3, 8, 4), (2, 0, 8, 4), (2, 3, 8, 0)]


def adjust_cases() -> list[dict[str, torch.Tensor]]:
    cases = [neurons(*shape)[0] for shape in (*SHAPES, *EMPTY)]
    odd = neurons(2, 40, 60, 50, seed=1)[0]
    generator = torch.Generator().manual_seed(2)
    for name, values in (
        ("pre_activation", (NAN, INF, -INF, 0.0, -0.0, 3e38)),
        ("threshold", (NAN, INF, -INF)),
        ("standardisers", (NAN, INF, 0.0)),
    ):
        flat = odd[name].view(-1)
        flat[torch.randperm(len(flat), generator=generator)[:60]] = torch.tensor(values).repeat(60 // len(values))
    return [*cases, odd]


def hypercubes(cubes: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """(cubes, 2, width), each of which holds a good part of standard normal vectors."""
    middle = 0.2 * torch.randn(cubes, 1, width, generator=generator)
    reach = 1.5 + torch.tensor(float(width)).log().sqrt()
    return torch.cat([middle - reach, middle + reach], dim=1)


def regions(
    shape: tuple[int, int, int], directions: int, count: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Inputs of RegionDetect: standard normal keys, each region of which holds a good part; one limit is infinite."""
    key, along = (torch.randn(each, generator=generator) for each in (shape, (directions, shape[2])))
    spread = along.norm(dim=-1)
    middle = 0.2 * torch.randn(count, 1, directions, generator=generator)
    reach = 0.5 + torch.tensor(float(directions)).log()
    limits = spread * torch.cat([middle - reach, middle + reach], dim=1)
    limits[:1, 1, :1] = INF
    return {"key": key, "directions": along, "limits": limits}


def near_limits(key: torch.Tensor, directions: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Whether a coordinate of each key is so close to a limit that rounding decides: (batch, positions) bool."""
    found = coordinates(key, directions)[..., None, None, :]  # (batch, positions, 1, 1, r)
    rounding = 1e-5 * coordinates(key.abs(), directions.abs())[..., None, None, :]
    return ((found - limits).abs() <= rounding).flatten(2).any(-1)
