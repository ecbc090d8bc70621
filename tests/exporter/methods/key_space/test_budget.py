"""The threshold within the budgets for false blocks, and the promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from exporter.methods.key_space.budget import at_least, at_most, hits_within, prompts_within, thresholds_within


def test_promises_are_exact_bounds() -> None:
    # At the bound, as few (or as many) hits have a probability of one tenth.
    assert binom.cdf(3, 400, at_most(3, 400).bound) == pytest.approx(0.1)
    assert binom.sf(110, 117, at_least(111, 117).bound) == pytest.approx(0.1)
    assert at_most(0, 30, confidence=0.95).bound == pytest.approx(1 - 0.05 ** (1 / 30))
    assert at_most(0, 360).bound == pytest.approx(1 - 0.1 ** (1 / 360))
    assert (at_least(0, 5).bound, at_most(5, 5).bound, at_most(0, 0).bound) == (0, 1, 1)


@pytest.mark.parametrize(("total", "hits"), [(100, 0), (229, 0), (387, 0), (388, 1), (532, 2), (0, 0)])
def test_hits_within_one_per_cent(total: int, hits: int) -> None:
    assert hits_within(total, 0.01) == hits
    assert not hits or at_most(hits, total).bound <= 0.01 < at_most(hits + 1, total).bound


@pytest.mark.parametrize(("budget", "places", "needed"), [(0.01, 1, 230), (0.01, 3, 531), (0.1, 2, 38), (1, 1, 1)])
def test_the_least_number_of_prompts_for_a_budget(budget: float, places: int, needed: int) -> None:
    assert prompts_within(budget, places) == needed
    assert at_most(0, needed, places).bound <= budget
    assert needed == places or at_most(0, needed - 1, places).bound > budget


COLUMNS = 2
tables = st.lists(
    st.lists(st.integers(-300, 900).map(lambda value: value / 300), min_size=COLUMNS, max_size=COLUMNS),
    min_size=1,
    max_size=60,
)


def inside(scores: Tensor, thresholds: Tensor) -> int:
    return int((scores <= thresholds).any(1).sum())


@given(
    forget=tables,
    harmless=tables,
    near=tables,
    after=tables,
    budget=st.sampled_from([0.01, 0.1, 0.3]),
    share=st.sampled_from([0, 0.1]),
)
def test_all_budgets_hold_over_all_places(
    forget: list[list[float]],
    harmless: list[list[float]],
    near: list[list[float]],
    after: list[list[float]],
    budget: float,
    share: float,
) -> None:
    sides = [torch.tensor(each).double() for each in (forget, harmless, near, after)]
    thresholds = thresholds_within(*sides[:2], [(each, share) for each in sides[2:]], budget)
    assert thresholds.isfinite().all()
    assert inside(sides[1], thresholds) <= hits_within(len(harmless), budget, COLUMNS)
    for close in sides[2:]:
        assert (close <= thresholds).sum(0).max() <= int(share * len(close))
    assert not (torch.cat(sides) == thresholds).any()  # no stored score is on it


def test_each_place_has_its_own_threshold_and_the_first_one_the_hits() -> None:
    # The second place has the wider scores, and one threshold for both would leave the first one nothing.
    one = torch.linspace(0, 1, 400).double()
    harmless = torch.stack([one, (10 * one - 5).flip(0)], 1)
    none = torch.zeros(0, COLUMNS).double()
    forget = torch.tensor([[-1.0, -9.0], [0.001, -4.99]]).double()
    thresholds = thresholds_within(forget, harmless, [(none, 0.02)], 0.02)
    allowed = hits_within(400, 0.02, COLUMNS)
    assert allowed == 3 and (harmless <= thresholds).sum(0).tolist() == [3, 0]
    assert thresholds_within(none, harmless, [], 0.02)[0] == thresholds[0]


def test_another_place_has_half_of_the_hits_where_more_is_blocked_then() -> None:
    scores = torch.linspace(0, 1, 400).double()
    harmless = torch.stack([scores, scores.flip(0)], 1)
    forget = torch.tensor([[0.001, 9.0], *[[9.0, 0.001]] * 5]).double()
    thresholds = thresholds_within(forget, harmless, [], 0.02)
    assert (harmless <= thresholds).sum(0).tolist() == [2, 1] and bool((forget <= thresholds).any(1).all())


@pytest.mark.parametrize("prompts", [400, 1100])
def test_the_bound_holds_though_the_place_that_gets_the_hits_is_chosen(prompts: int) -> None:
    torch.manual_seed(0)
    forget, exceeded, elsewhere = torch.rand(300, 3).double().square() / 4, 0, 0
    forget[:100, 1:] = forget[100:200, ::2] = forget[200:, :2] = 9.0  # each is asked at one place
    for _ in range(400):
        scores = torch.rand(prompts, 3).double()
        thresholds = thresholds_within(forget, scores, [], 0.02)
        inside_ = (scores <= thresholds).any(1)
        elsewhere += bool((scores <= thresholds)[:, 1:].any())
        share = float(1 - (1 - thresholds.clamp(0, 1)).prod())
        exceeded += share > at_most(int(inside_.sum()), prompts, 3).bound
    assert elsewhere > 40 and exceeded <= binom.ppf(0.99, 400, 0.1)


def test_the_bound_holds_over_several_thresholds_set_on_the_same_prompts() -> None:
    """Thresholds at the least scores of 300 prompts: in nine of ten draws at most this share of others is inside."""
    torch.manual_seed(0)
    held = 0
    for _ in range(400):
        scores = torch.rand(300, 3).double()
        thresholds = scores.amin(0)
        held += float(1 - (1 - thresholds).prod()) <= at_most(0, 300, 3).bound
    assert 0.86 <= held / 400 <= 0.94


def test_the_threshold_lies_in_the_middle_of_the_gap() -> None:
    forget, harmless = torch.tensor([[0.0], [0.1]]).double(), torch.tensor([[0.9], [1.0]]).double()
    none = torch.zeros(0, 1).double()
    assert thresholds_within(forget, harmless, [(none, 0.02)], 0.01).item() == pytest.approx(0.5)


def test_without_harmless_prompts_all_of_the_skill_is_inside() -> None:
    none = torch.zeros(0, 1).double()
    assert thresholds_within(torch.tensor([[0.0], [4.0]]).double(), none, [], 0.01).item() > 4.0
