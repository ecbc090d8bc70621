"""The CUDA kernels against those for the CPU: started by ctypes, and through ONNX Runtime where it has CUDA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch

from custom_modeling.key_space import inside_hypercubes, inside_regions
from custom_modeling.neuron_adjust import PRIME, draw_context, uniform_draws
from exporter.onnx.library import build_operators, find_nvcc
from exporter.onnx.operators import KEY_SPACE_DETECT, NEURON_ADJUST, NEURON_DRAWS, REGION_DETECT
from tests.operator_models import (
    NAN,
    adjust_cases,
    bits,
    cuda_launcher,
    hypercubes,
    near_limits,
    neurons,
    options,
    regions,
    run,
    session,
)


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU and a PyTorch with CUDA")
    if find_nvcc() is None:
        pytest.skip("there is no nvcc")
    return build_operators(tmp_path_factory.mktemp("cuda") / "operators.so", cuda=True)


@pytest.fixture(scope="session")
def launch(cuda_library: Path) -> Callable[..., None]:
    """launch(name, *tensors and sizes) starts a kernel on a stream of its own and waits for it."""
    start = cuda_launcher(cuda_library)

    def call(name: str, *arguments: torch.Tensor | int) -> None:
        torch.cuda.synchronize()  # the tensors are made on another stream
        stream = torch.cuda.Stream()
        start(name, stream, *arguments)
        stream.synchronize()

    return call


def draw_inputs(shape: tuple[int, int], count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    positions, tokens = torch.randint(0, 2**31, (2, *shape), generator=generator)
    return {
        "position_ids": positions,
        "token_ids": tokens,
        "keys": torch.randint(0, PRIME, (count,), generator=generator),
    }


def detect_inputs(shape: tuple[int, int, int], cubes: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    key, bounds = torch.randn(shape, generator=generator), hypercubes(cubes, shape[2], generator)
    key.view(-1)[::97], bounds.view(-1)[::89] = NAN, NAN
    return {"key": key, "bounds": bounds}


def region_inputs(shape: tuple[int, int, int], directions: int, count: int) -> dict[str, torch.Tensor]:
    inputs = regions(shape, directions, count, torch.Generator().manual_seed(2))
    inputs["key"].view(-1)[::997], inputs["limits"].view(-1)[::13] = NAN, NAN
    return inputs


def draws_by_torch(position_ids: torch.Tensor, token_ids: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return uniform_draws(draw_context(position_ids, token_ids), keys)


DRAWS = [((2, 500), 1000), ((1, 1), 1), ((3, 7), 5), ((0, 3), 4), ((2, 3), 0)]
DETECT = [((2, 30, 300), 3), ((1, 1, 8192), 1), ((3, 40, 1), 2), ((1, 70000, 8), 1), ((2, 3, 8), 0), ((0, 3, 8), 1)]
REGIONS = [((2, 30, 300), 3, 3), ((1, 1, 8192), 4, 1), ((3, 40, 1), 1, 2), ((1, 70000, 8), 2, 1), ((2, 3, 8), 2, 0)]
REGIONS += [((0, 3, 8), 1, 1), ((1, 5, 14336), 300, 2)]


@pytest.mark.parametrize(("shape", "count"), DRAWS)
def test_draws(launch: Callable[..., None], shape: tuple[int, int], count: int) -> None:
    inputs = draw_inputs(shape, count)
    draws = torch.full((*shape, count), NAN, device="cuda")
    on_device = [each.cuda() for each in inputs.values()]  # held until the kernel is done
    launch("neuron_draws", *on_device, draws, shape[0] * shape[1], count)
    assert torch.equal(bits(draws.cpu()), bits(draws_by_torch(**inputs)))


def same_floats(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Bit by bit, but that one NaN is as good as another."""
    nan = expected.isnan()
    return torch.equal(nan, found.isnan()) and torch.equal(bits(found)[~nan], bits(expected)[~nan])


def test_adjust(launch: Callable[..., None], library: Path) -> None:
    by_cpu = session(NEURON_ADJUST, options(library))
    for case in adjust_cases():
        batch, positions, width = case["pre_activation"].shape
        on_device = [each.cuda() for each in case.values()]
        adjusted = torch.full_like(on_device[0], 123.0)
        launch("neuron_adjust", *on_device, adjusted, batch * positions, width, len(case["index"]))
        assert same_floats(adjusted.cpu(), run(by_cpu, **case))


def test_an_index_out_of_range_changes_nothing(launch: Callable[..., None]) -> None:
    inputs, _ = neurons(2, 3, 8, 4)
    inputs["index"][:] = torch.tensor([-1, 8, 2**40, -(2**40)])
    on_device = [each.cuda() for each in inputs.values()]
    adjusted = torch.zeros_like(on_device[0])
    launch("neuron_adjust", *on_device, adjusted, 6, 8, 4)
    assert torch.equal(adjusted.cpu(), inputs["pre_activation"])


@pytest.mark.parametrize(("shape", "cubes"), DETECT)
def test_detect(launch: Callable[..., None], shape: tuple[int, int, int], cubes: int) -> None:
    inputs = detect_inputs(shape, cubes)
    expected = inside_hypercubes(**inputs)
    hit = (~expected).cuda()
    on_device = [each.cuda() for each in inputs.values()]
    launch("key_space_detect", *on_device, hit, shape[0] * shape[1], shape[2], cubes)
    assert torch.equal(hit.cpu(), expected)


@pytest.mark.parametrize(("shape", "directions", "count"), REGIONS)
def test_regions(launch: Callable[..., None], shape: tuple[int, int, int], directions: int, count: int) -> None:
    inputs = region_inputs(shape, directions, count)
    expected, sure = inside_regions(**inputs), ~near_limits(**inputs)
    hit = (~expected).cuda()
    on_device = [each.cuda() for each in inputs.values()]
    launch("region_detect", *on_device, hit, shape[0] * shape[1], shape[2], directions, count)
    assert torch.equal(hit.cpu()[sure], expected[sure])


@pytest.mark.parametrize("kernels", [False, True], ids=["bodies", "kernels"])
def test_through_onnx_runtime(cuda_library: Path, library: Path, kernels: bool) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA (package onnxruntime-gpu)")
    cases = [(NEURON_DRAWS, draw_inputs(*DRAWS[0])), (KEY_SPACE_DETECT, detect_inputs(*DETECT[0]))]
    cases += [(NEURON_ADJUST, neurons(2, 150, 300, 128)[0]), (REGION_DETECT, region_inputs(*REGIONS[0]))]
    for name, inputs in cases:
        chosen = options(cuda_library if kernels else None)
        chosen.add_session_config_entry("session.disable_cpu_ep_fallback", "1" if kernels else "0")
        on_gpu = session(name, chosen, "CUDAExecutionProvider")
        assert on_gpu.get_providers()[0] == "CUDAExecutionProvider"
        found, expected = run(on_gpu, **inputs), run(session(name, options(library)), **inputs)
        if name == REGION_DETECT:  # sums, which rounding may decide otherwise
            sure = ~near_limits(**inputs)
            found, expected = found[sure], expected[sure]
        assert torch.equal(found, expected) if found.dtype == torch.bool else same_floats(found, expected)
