"""The threshold within the budgets for false blocks, and the promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from exporter.methods.key_space.budget import at_least, at_most, hits_within, threshold_within


def test_promises_are_exact_bounds() -> None:
    # At the bound, as few (or as many) hits have a probability of one tenth.
    assert binom.cdf(3, 400, at_most(3, 400).bound) == pytest.approx(0.1)
    assert binom.sf(110, 117, at_least(111, 117).bound) == pytest.approx(0.1)
    assert at_most(0, 360).bound == pytest.approx(1 - 0.1 ** (1 / 360))
    assert (at_least(0, 5).bound, at_most(5, 5).bound, at_most(0, 0).bound) == (0, 1, 1)


@pytest.mark.parametrize(("total", "hits"), [(100, 0), (229, 0), (387, 0), (388, 1), (532, 2), (0, 0)])
def test_hits_within_one_per_cent(total: int, hits: int) -> None:
    assert hits_within(total, 0.01) == hits
    assert not hits or at_most(hits, total).bound <= 0.01 < at_most(hits + 1, total).bound


scores = st.lists(st.floats(-2, 3).map(lambda value: round(value, 3)), unique=True, min_size=1, max_size=60)


@given(forget=scores, harmless=scores, near=scores, budget=st.sampled_from([0.01, 0.1, 0.3]))
def test_the_threshold_is_the_loosest_within_both_budgets(
    forget: list[float], harmless: list[float], near: list[float], budget: float
) -> None:
    sides = [torch.tensor(each).double() for each in (forget, harmless, near)]
    threshold = threshold_within(*sides, budget, 0.1)
    allowed = hits_within(len(harmless), budget), int(0.1 * len(near))
    inside = [int((each <= threshold).sum()) for each in sides[1:]]
    assert inside[0] <= allowed[0] and inside[1] <= allowed[1]
    # No stored score is on it, and beyond the next one a budget is exceeded.
    every = torch.cat(sides)
    assert not (every == threshold).any()
    beyond = every[every > threshold]
    if len(beyond):
        inside = [int((each <= beyond.min()).sum()) for each in sides[1:]]
        assert inside[0] > allowed[0] or inside[1] > allowed[1]


def test_the_threshold_lies_in_the_middle_of_the_gap() -> None:
    forget, harmless = torch.tensor([0.0, 0.1]).double(), torch.tensor([0.9, 1.0]).double()
    assert threshold_within(forget, harmless, torch.zeros(0).double(), 0.01, 0.02) == pytest.approx(0.5)


def test_without_harmless_prompts_all_of_the_skill_is_inside() -> None:
    none = torch.zeros(0).double()
    assert threshold_within(torch.tensor([0.0, 4.0]).double(), none, none, 0.01, 0.02) > 4.0
