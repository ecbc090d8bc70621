"""Paired tests against closed forms, and how often they are wrong where nothing differs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from exporter.evaluation.paired import flips, loss_rise


def test_flips_are_counted_and_tested_exactly() -> None:
    first = [True] * 10 + [False] * 4 + [True] * 3 + [False] * 2
    second = [False] * 10 + [True] * 4 + [True] * 3 + [False] * 2
    found = flips(first, second)
    assert [found[name] for name in ("both", "only_first", "only_second", "neither")] == [3, 10, 4, 2]
    tail = sum(math.comb(14, k) for k in range(5)) / 2**14
    assert found["p_value"] == pytest.approx(2 * tail)


def test_no_flip_says_nothing() -> None:
    assert flips([True, False], [True, False])["p_value"] == 1.0
    assert flips([], [])["p_value"] == 1.0


def test_the_rise_is_that_of_all_tokens() -> None:
    found = loss_rise([10.0, 20.0, 3.0], [11.0, 26.0, 3.5], [10, 20, 5], seed=0)
    assert found["mean"] == pytest.approx(7.5 / 35)
    assert found["low"] <= found["mean"] <= found["high"]
    assert found == loss_rise([10.0, 20.0, 3.0], [11.0, 26.0, 3.5], [10, 20, 5], seed=0)


def test_without_spread_the_interval_is_the_mean() -> None:
    found = loss_rise([10.0, 20.0], [11.0, 22.0], [10, 20], seed=0)
    assert found["low"] == found["high"] == found["mean"] == pytest.approx(0.1)
    one = loss_rise([10.0], [12.0], [4], seed=0)
    assert one["low"] == one["high"] == one["mean"] == pytest.approx(0.5)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        tokens = random.integers(20, 60, 40)
        base = random.normal(3.0, 0.5, 40) * tokens
        edited = base + random.normal(0.1, 0.2, 40) * tokens
        found = loss_rise(base.tolist(), edited.tolist(), tokens.tolist(), seed=trial)
        inside += found["low"] <= 0.1 <= found["high"]
    # 95 % of 200 with a standard deviation of 3; the percentile bootstrap of 40 texts is a little too narrow.
    assert 178 <= inside <= 199
