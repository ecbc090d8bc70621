"""Neuron Adjust: the hash against whole numbers of Python, the rule against float64, flips against sigmoid(d)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, kstest

from custom_modeling.neuron_adjust import (
    PRIME,
    adjust,
    adjust_official,
    draw_context,
    neuron_key,
    standardisers,
    thresholds,
    uniform_draws,
)

LATER = torch.tensor([7])  # a position where neurons are moved
GOLDEN = json.loads((Path(__file__).parent / "data" / "draws.json").read_text())


def exact(seed: int, layer: int, neuron: int, position: int, token: int) -> int:
    """t of the hash, in whole numbers without bounds."""

    def scramble(x: int, constant: int) -> int:
        return pow((x + constant) % PRIME, 5, PRIME)

    context = scramble(scramble(position, 1327217885) + token, 1732584193)
    return scramble(scramble(context + neuron_key(seed, layer, neuron), 271733879), 414899455)


def test_golden_vectors() -> None:
    """The fixture that every backend shares; u is given as the integer of which it is 2^-24."""
    for row in GOLDEN["draws"]:
        key = neuron_key(row["seed"], row["layer"], row["neuron"])
        assert key == row["key"]
        context = draw_context(torch.tensor(row["position"]), torch.tensor(row["token"]))
        assert context.item() == row["context"]
        assert uniform_draws(context, torch.tensor([key])).item() * 2**24 == row["u24"]
        narrow = (torch.tensor(row[name]).to(torch.int32) for name in ("position", "token"))
        assert draw_context(*narrow).item() == row["context"]


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 200),
    st.integers(0, 10**6),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**31 - 1),
)
def test_hash_is_exact(seed: int, layer: int, neuron: int, position: int, token: int) -> None:
    context = draw_context(torch.tensor([position]), torch.tensor([token]))
    draw = uniform_draws(context, torch.tensor([neuron_key(seed, layer, neuron)]))
    assert draw.dtype == torch.float32 and draw.item() == (exact(seed, layer, neuron, position, token) // 128) * 2**-24


def test_draws_are_uniform() -> None:
    keys = torch.tensor([neuron_key(3, 5, neuron) for neuron in range(200)])
    draws = uniform_draws(draw_context(torch.arange(500), torch.tensor(7)), keys)  # worst case: one token, counters
    assert kstest(draws.flatten().double().numpy(), "uniform").pvalue > 1e-4
    for dim in (0, 1):
        neighbours = torch.stack([draws.narrow(dim, 0, 199).flatten(), draws.narrow(dim, 1, 199).flatten()])
        assert abs(torch.corrcoef(neighbours)[0, 1]) < 5 / math.sqrt(neighbours.shape[1])


def ratio(value: float, mean_f: float, sd_f: float, mean_r: float, sd_r: float) -> float:
    zf, zr = (value - mean_f) / sd_f, (value - mean_r) / sd_r
    return (zr * zr - zf * zf) / 2 + math.log(sd_r / sd_f)


number = st.floats(-30, 30, width=32)
deviation = st.floats(0.0625, 16, width=32)


@settings(max_examples=300, deadline=None)
@given(number, number, deviation, number, deviation, st.integers(0, 2**24 - 1))
def test_rule_against_float64(v: float, mean_f: float, sd_f: float, mean_r: float, sd_r: float, u24: int) -> None:
    params = torch.tensor([[mean_f], [sd_f], [mean_r], [sd_r]])
    draw = torch.tensor([[u24]]).float() * 2.0**-24
    d, u = ratio(v, mean_f, sd_f, mean_r, sd_r), u24 * 2**-24
    chance = 1 / (1 + math.exp(-d)) if d > -700 else 0.0
    found = adjust(
        torch.tensor([[9.0, v]]), torch.tensor([1]), thresholds(params, draw, LATER), *standardisers(params)
    )
    assert found[0, 0] == 9.0
    if abs(d) < 1e-3 or abs(u - chance) < 1e-4:
        return  # too near for float32
    expected = mean_r - (v - mean_f) / sd_f * sd_r if d > 0 and u < chance else v
    assert found[0, 1].item() == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("d", [-0.5, 0.01, 0.4, 1.0, 3.0])
def test_flips_happen_with_sigmoid_of_d(d: float) -> None:
    """Over 4,000 seeds; never where d <= 0. With equal deviations d = v for mu_f = 1/2, mu_r = -1/2."""
    params = torch.tensor([[0.5], [1.0], [-0.5], [1.0]])
    context = draw_context(torch.tensor(11), torch.tensor(42))
    keys = torch.tensor([neuron_key(seed, 3, 8) for seed in range(4000)])
    draws = uniform_draws(context, keys).unsqueeze(-1)  # (seeds, 1)
    values = torch.full((4000, 1), d)
    threshold = thresholds(params, draws, LATER)
    flipped = int((adjust(values.clone(), torch.tensor([0]), threshold, *standardisers(params)) != values).sum())
    if d <= 0:
        assert flipped == 0
    else:
        assert binomtest(flipped, 4000, 1 / (1 + math.exp(-d))).pvalue > 1e-4


def test_expected_draws_flip_whenever_it_is_more_likely_than_not() -> None:
    params = torch.tensor([[0.5], [1.0], [-0.5], [1.0]])
    values = torch.tensor([[-0.1], [0.0], [0.1], [2.0]])
    found = adjust(values.clone(), torch.tensor([0]), thresholds(params, None, LATER), *standardisers(params))
    assert (found != values).flatten().tolist() == [False, False, True, True]


@pytest.mark.parametrize("draws", [None, torch.zeros(2, 3, 1)])
def test_the_first_position_is_never_moved(draws: torch.Tensor | None) -> None:
    params = torch.tensor([[0.5], [1.0], [-0.5], [1.0]])
    values = torch.full((2, 3, 1), 2.0)
    positions = torch.tensor([[0, 1, 2], [5, 0, 1]])  # the second row: a text's end, then the next text
    found = adjust(values.clone(), torch.tensor([0]), thresholds(params, draws, positions), *standardisers(params))
    assert torch.equal(found.squeeze(-1) != 2.0, positions != 0)


def test_far_tails_give_no_nan() -> None:
    params = torch.tensor([[0.0], [1e-3], [5.0], [1e-3]])
    threshold = thresholds(params, torch.zeros(2, 1), LATER)
    found = adjust(torch.tensor([[3e4], [-3e4]]), torch.tensor([0]), threshold, *standardisers(params))
    assert torch.isfinite(found).all()


def test_official_rule() -> None:
    """Theirs: the forget mean as its deviation, the retain variance as its deviation, one draw for a whole call."""
    params = torch.tensor([[1.5, -1.0], [1.5, -1.0], [0.0, 0.0], [0.25, 0.25]])
    values = torch.full((1, 1000, 2), 1.5)
    torch.manual_seed(0)
    calls = [adjust_official(values.clone(), torch.tensor([0, 1]), params)[0] for _ in range(400)]
    for found in calls:
        assert (found[:, 0] == found[0, 0]).all()  # a thousand equal tokens are all moved, or none is
        assert (found[:, 1] == 1.5).all()  # a negative mean makes a negative density: never moved
    moved = [float(found[0, 0]) for found in calls if found[0, 0] != 1.5]
    assert moved == [pytest.approx(0.0)] * len(moved)
    forget, retain = 1 / (1.5 * math.sqrt(2 * math.pi)), math.exp(-18.0) / (0.25 * math.sqrt(2 * math.pi))
    assert binomtest(len(moved), 400, forget / (forget + retain)).pvalue > 1e-4
    with pytest.raises(RuntimeError, match="batches of one row"):
        adjust_official(torch.zeros(2, 3, 2), torch.tensor([0, 1]), params)
