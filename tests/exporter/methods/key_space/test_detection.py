"""Counting what regions hold: intervals over phrases."""

from __future__ import annotations

import pytest

from exporter.common.rates import rate
from exporter.methods.key_space.detection import rate_over


def test_prompts_alone_have_the_exact_interval() -> None:
    assert rate_over([[hit] for hit in [True] * 30 + [False] * 10]) == rate(30, 40)
    assert rate_over([]) == rate(0, 0)


@pytest.mark.parametrize("hits", [0, 20])
def test_one_outcome_has_the_exact_interval(hits: int) -> None:
    assert rate_over([[hits > 0] * 5] * 4) == rate(hits, 20)


def test_phrases_that_decide_make_it_wider() -> None:
    """Ten questions with each of eight phrases: half of the phrases are always blocked, and half of them never."""
    found, exact = rate_over([[number % 2 == 0] * 10 for number in range(8)]), rate(40, 80)
    assert (found.hits, found.total) == (40, 80)
    assert found.low < exact.low - 0.03 and found.high > exact.high + 0.03
