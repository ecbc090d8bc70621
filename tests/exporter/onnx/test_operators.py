"""The ONNX operators against the runtime of checkpoints, by bodies and by kernels; both must agree bit by bit,
or where there are sums, but for rounding."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import pytest
import torch

from custom_modeling.key_space import inside_hypercubes, inside_regions
from custom_modeling.neuron_adjust import PRIME, adjust, draw_context, uniform_draws
from exporter.onnx.operators import DOMAIN, KEY_SPACE_DETECT, NEURON_ADJUST, NEURON_DRAWS, REGION_DETECT, functions
from tests.operator_models import (
    EMPTY,
    ERRORS,
    INF,
    NAN,
    SIGNATURES,
    adjust_cases,
    bits,
    hypercubes,
    model,
    near_limits,
    neurons,
    options,
    regions,
    run,
    session,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = json.loads((ROOT / "tests" / "custom_modeling" / "data" / "draws.json").read_text())["draws"]

EPS = 2.0**-23

Operator = Callable[..., torch.Tensor]


def drawn(operator: Operator, positions: torch.Tensor, tokens: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return operator(NEURON_DRAWS, position_ids=positions, token_ids=tokens, keys=keys)


def test_golden_vectors(operator: Operator) -> None:
    positions, tokens, keys = (torch.tensor([row[name] for row in GOLDEN]) for name in ("position", "token", "key"))
    draws = drawn(operator, positions[None], tokens[None], keys)[0].diagonal()  # token i with neuron i
    assert (draws.double() * 2**24).tolist() == [row["u24"] for row in GOLDEN]


def test_a_million_draws_are_the_checkpoints(operator: Operator) -> None:
    generator = torch.Generator().manual_seed(0)
    positions, tokens = torch.randint(0, 2**31, (2, 2, 500), generator=generator)
    keys = torch.randint(0, PRIME, (1000,), generator=generator)
    edges = torch.tensor([0, 1, 2**31 - 3, PRIME - 1, PRIME])
    positions[0, :25], tokens[0, :25] = edges.repeat(5), edges.repeat_interleave(5)
    keys[:4] = edges[:4]
    assert torch.equal(
        bits(drawn(operator, positions, tokens, keys)), bits(uniform_draws(draw_context(positions, tokens), keys))
    )


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (1, 1, 1)])
def test_draws_of_small_shapes(operator: Operator, shape: tuple[int, int, int]) -> None:
    ids, keys = torch.arange(shape[0] * shape[1]).reshape(shape[:2]), torch.arange(shape[2])
    draws = drawn(operator, ids, ids + 7, keys)
    assert draws.shape == shape
    assert torch.equal(draws, uniform_draws(draw_context(ids, ids + 7), keys))


def adjusted_by_checkpoint(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return adjust(inputs["pre_activation"].clone(), inputs["index"], inputs["threshold"], *inputs["standardisers"])


@pytest.fixture(scope="session")
def unfused(tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    """What `adjust` makes of the cases where PyTorch multiplies and adds one after the other, in another process.

    With AVX2 or AVX-512, PyTorch's addcmul is a fused multiply-add, which no standard operator of ONNX is.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("only on x86-64 does ATEN_CPU_CAPABILITY choose how PyTorch multiplies and adds")
    folder = tmp_path_factory.mktemp("unfused")
    torch.save(adjust_cases(), folder / "cases.pt")
    code = """if True:
        import sys, torch
        from custom_modeling.neuron_adjust import adjust
        cases = torch.load(sys.argv[1] + "/cases.pt")
        made = [adjust(c["pre_activation"], c["index"], c["threshold"], *c["standardisers"]) for c in cases]
        torch.save(made, sys.argv[1] + "/made.pt")
    """
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, env=environment, check=True)
    made: list[torch.Tensor] = torch.load(folder / "made.pt")
    return made


def test_adjust_is_the_checkpoints_bit_by_bit(operator: Operator, unfused: list[torch.Tensor]) -> None:
    moved = 0
    for case, expected in zip(adjust_cases(), unfused, strict=True):
        found = operator(NEURON_ADJUST, **case)
        nan = expected.isnan()  # the bits of a NaN that arithmetic makes are the processor's own affair
        assert torch.equal(nan, found.isnan())
        assert torch.equal(bits(found)[~nan], bits(expected)[~nan])
        moved += int((found != case["pre_activation"]).sum())
    assert moved > 1000


def test_adjust_against_whole_precision_and_fused(operator: Operator) -> None:
    """Decisions are those of float64, and of PyTorch as it runs here, but where rounding alone decides."""
    inputs, _ = neurons(4, 250, 1000, 500, seed=3)
    index, threshold = inputs["index"], inputs["threshold"]
    value = inputs["pre_activation"][..., index]
    scale_f, offset_f, scale_r, offset_r, mu_r, sd_r = inputs["standardisers"].double()
    zf, zr = offset_f + value * scale_f, offset_r + value * scale_r
    error_f, error_r = (
        EPS * (offset.abs() + (value * scale).abs()) for offset, scale in ((offset_f, scale_f), (offset_r, scale_r))
    )
    above = zr * zr - zf * zf - threshold
    rounding = 2 * zf.abs() * error_f + 2 * zr.abs() * error_r + 2 * EPS * (zf * zf + zr * zr)
    sure = above.abs() > rounding
    assert sure.double().mean() > 0.9999

    found, torchs = operator(NEURON_ADJUST, **inputs), adjusted_by_checkpoint(inputs)
    untouched = torch.ones(1000, dtype=torch.bool)
    untouched[index] = False
    assert torch.equal(found[..., untouched], inputs["pre_activation"][..., untouched])
    moved = above > 0
    assert 0.1 < moved[:, 1:].double().mean() < 0.9
    for result in (found[..., index], torchs[..., index]):
        assert torch.equal((result != value)[sure], moved[sure])
        wrong = (result - (mu_r - zf * sd_r)).abs() > 2 * EPS * (mu_r.abs() + (zf * sd_r).abs()) + error_f * sd_r
        assert not (wrong & moved & sure).any()
    assert not (found != inputs["pre_activation"])[:, 0].any()  # infinite thresholds


@pytest.mark.parametrize("shape", EMPTY)
def test_adjust_of_empty_shapes(operator: Operator, shape: tuple[int, int, int, int]) -> None:
    inputs, _ = neurons(*shape)
    assert torch.equal(operator(NEURON_ADJUST, **inputs), inputs["pre_activation"])


@pytest.mark.parametrize(
    "shape", [(2, 30, 300), (3, 40, 1), (1, 1, 1536), (1, 1000, 17), (0, 3, 8), (2, 0, 8), (2, 3, 0)]
)
@pytest.mark.parametrize("cubes", [0, 1, 3])
def test_detect_is_the_checkpoints(operator: Operator, shape: tuple[int, int, int], cubes: int) -> None:
    generator = torch.Generator().manual_seed(4)
    key, bounds = torch.randn(shape, generator=generator), hypercubes(cubes, shape[2], generator)
    hit = operator(KEY_SPACE_DETECT, key=key, bounds=bounds)
    assert hit.dtype == torch.bool and hit.shape == shape[:2]
    assert torch.equal(hit, inside_hypercubes(key, bounds))
    exact = key.double()[..., None, :], bounds.double()
    inside = ~((exact[0] < exact[1][:, 0]) | (exact[0] > exact[1][:, 1])).any(-1)  # (batch, positions, cubes)
    assert torch.equal(hit, inside.any(-1))
    if cubes and hit.numel() > 50:
        assert 0 < hit.double().mean() < 1


def test_detect_takes_what_is_no_number_for_inside(operator: Operator) -> None:
    lower, upper = torch.tensor([-1.0, -1.0, -INF]), torch.tensor([1.0, 1.0, INF])
    rows = {  # key -> inside of the cube above: as it is, with NaN for its first lower bound, for its first upper one
        (0, 0, 0): (True, True, True),
        (1, -1, 3e38): (True, True, True),
        (1 + EPS, 0, 0): (False, False, True),
        (-1 - EPS, 0, 0): (False, True, False),
        (NAN, 0, 0): (True, True, True),
        (NAN, NAN, NAN): (True, True, True),
        (NAN, 2, 0): (False, False, False),
        (INF, 0, 0): (False, False, True),
        (-INF, 0, 0): (False, True, False),
        (0, 0, INF): (True, True, True),
        (0, 0, -INF): (True, True, True),
    }
    key = torch.tensor(list(rows), dtype=torch.float32)[None]
    for column, (low, high) in enumerate([(-1.0, 1.0), (NAN, 1.0), (-1.0, NAN)]):
        lower[0], upper[0] = low, high
        bounds = torch.stack([lower, upper])[None]
        expected = [each[column] for each in rows.values()]
        assert operator(KEY_SPACE_DETECT, key=key, bounds=bounds)[0].tolist() == expected
        assert inside_hypercubes(key, bounds)[0].tolist() == expected


@pytest.mark.parametrize("shape", [(2, 30, 300), (3, 40, 1), (1, 7, 1536), (1, 500, 17), (0, 3, 8), (2, 0, 8)])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("directions", [1, 2, 3, 4])
def test_regions_are_the_checkpoints(
    operator: Operator, shape: tuple[int, int, int], count: int, directions: int
) -> None:
    inputs = regions(shape, directions, count, torch.Generator().manual_seed(5))
    hit = operator(REGION_DETECT, **inputs)
    assert hit.dtype == torch.bool and hit.shape == shape[:2]
    sure = ~near_limits(**inputs)
    assert torch.equal(hit[sure], inside_regions(**inputs)[sure])
    if count and hit.numel() > 50:
        assert 0 < hit.double().mean() < 1 and sure.double().mean() > 0.99


def test_regions_of_whole_numbers_are_exact(operator: Operator) -> None:
    """Sums that no rounding touches, many of them on a limit, which belongs to the region."""
    generator = torch.Generator().manual_seed(6)
    key = torch.randint(-3, 4, (2, 200, 40), generator=generator).float()
    directions = torch.randint(-2, 3, (3, 40), generator=generator).float()
    limits = torch.tensor([[-12.0] * 3, [9.0] * 3]).expand(1, 2, 3)
    hit = operator(REGION_DETECT, key=key, directions=directions, limits=limits)
    exact = (key.double() @ directions.double().T).unsqueeze(-2)
    assert (exact == 9).any() and (exact == -12).any() and 0 < hit.double().mean() < 1
    assert torch.equal(hit, ((exact >= -12) & (exact <= 9)).all(-1).any(-1))


def test_regions_take_what_is_no_number_for_inside(operator: Operator) -> None:
    directions = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    rows = {  # key -> inside of x + y >= 1 alone, and of that with x - y from -1 to 1
        (0.5, 0.5): (True, True),
        (0.5 - EPS, 0.5): (False, False),
        (3.0, 0.0): (True, False),
        (-3.0, -3.0): (False, False),
        (INF, 0.0): (True, False),
        (INF, INF): (True, True),  # the difference is NaN
        (-INF, -INF): (False, False),
        (NAN, 0.0): (True, True),
    }
    key = torch.tensor(list(rows))[None]
    for column, limits in enumerate([[[1.0, -INF], [INF, INF]], [[1.0, -1.0], [INF, 1.0]]]):
        inputs = {"key": key, "directions": directions, "limits": torch.tensor([limits])}
        expected = [each[column] for each in rows.values()]
        assert operator(REGION_DETECT, **inputs)[0].tolist() == expected
        assert inside_regions(**inputs)[0].tolist() == expected
    for name, values in inputs.items():
        unfilled = inputs | {"key": torch.zeros(1, 1, 2), name: torch.full_like(values, NAN)}
        assert operator(REGION_DETECT, **unfilled).all()
    closed = inputs | {"limits": torch.tensor([[[INF, INF], [-INF, -INF]]])}
    assert operator(REGION_DETECT, **closed)[0].tolist() == [False] * 7 + [True]


@pytest.mark.parametrize("name", SIGNATURES)
def test_kernels_are_run_where_there_are_some(name: str, way: tuple[Path | None, bool], tmp_path: Path) -> None:
    chosen = options(*way)
    chosen.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session(name, chosen)
    kept = {(node.domain, node.op_type) for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert ((DOMAIN, name) in kept) == (way[0] is not None)


WRONG = {
    "token_ids": (NEURON_DRAWS, {"position_ids": (2, 3), "token_ids": (2, 4), "keys": (5,)}),
    "threshold": (
        NEURON_ADJUST,
        {"pre_activation": (2, 3, 8), "index": (4,), "threshold": (2, 3, 5), "standardisers": (6, 4)},
    ),
    "standardisers": (
        NEURON_ADJUST,
        {"pre_activation": (2, 3, 8), "index": (4,), "threshold": (2, 3, 4), "standardisers": (5, 4)},
    ),
    "bounds": (KEY_SPACE_DETECT, {"key": (2, 3, 8), "bounds": (1, 2, 9)}),
    "directions": (REGION_DETECT, {"key": (2, 3, 8), "directions": (4, 9), "limits": (1, 2, 4)}),
    "limits": (REGION_DETECT, {"key": (2, 3, 8), "directions": (4, 8), "limits": (1, 2, 5)}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_shapes_are_an_error(operator: Operator, way: tuple[Path | None, bool], wrong: str) -> None:
    name, shapes = WRONG[wrong]
    kinds = {
        each: torch.int64 if kind == onnx.TensorProto.INT64 else torch.float32
        for each, (kind, _) in SIGNATURES[name][0].items()
    }
    with pytest.raises(ERRORS, match=f"{name}: dimension . of {wrong}" if way[0] else "Non-zero status code"):
        operator(name, **{each: torch.zeros(shape, dtype=kinds[each]) for each, shape in shapes.items()})


@pytest.mark.parametrize("place", [-9, 8, 2**40])
def test_index_out_of_range_is_an_error(operator: Operator, way: tuple[Path | None, bool], place: int) -> None:
    inputs, _ = neurons(2, 3, 8, 4)
    inputs["index"][2] = place
    with pytest.raises(ERRORS, match=f"index {place} is outside of 0 to 7" if way[0] else "indices"):
        operator(NEURON_ADJUST, **inputs)


def test_two_threads_share_a_session(way: tuple[Path | None, bool]) -> None:
    made = session(NEURON_ADJUST, options(*way))
    cases = [neurons(1, 60, 200, 100, seed=seed)[0] for seed in range(2)]
    alone = [bits(run(made, **case)) for case in cases]

    def often(number: int) -> bool:
        return all(torch.equal(bits(run(made, **cases[number])), alone[number]) for _ in range(100))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(often, range(2))) == [True, True]


@pytest.mark.parametrize("name", SIGNATURES)
def test_models_are_valid(name: str) -> None:
    onnx.checker.check_model(model(name), full_check=True)


def test_bodies_use_what_every_provider_has() -> None:
    """ONNX Runtime's CUDA provider has these too, at opset 18 and for the types here (its docs/OperatorKernels.md)."""
    everywhere = {"Add", "Cast", "Constant", "Div", "Expand", "Gather", "Greater", "Less", "Mul", "Or", "ReduceSum"}
    everywhere |= {"ScatterElements", "Shape", "Split", "Sub", "Unsqueeze", "Where"}
    for function in functions():
        assert function.domain == DOMAIN
        assert {node.op_type for node in function.node} <= everywhere
        assert {node.domain for node in function.node} == {""}
        kinds = {a.i for node in function.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"}
        assert kinds <= {onnx.TensorProto.FLOAT}
