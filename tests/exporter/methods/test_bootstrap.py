from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from exporter.methods.bootstrap import ratio_interval

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(20, 60, 200).astype(float)
RISES = RANDOM.normal(0.1, 0.2, 200) * TOKENS


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95])
def test_the_ends_are_those_of_the_normal_approximation(confidence: float) -> None:
    mean = RISES.sum() / TOKENS.sum()
    error = np.sqrt(np.square(RISES - mean * TOKENS).sum()) / TOKENS.sum()
    low, high = ratio_interval(RISES, TOKENS, confidence, seed=0)
    reach = norm.ppf((1 + confidence) / 2) * error
    assert (low, high) == pytest.approx((mean - reach, mean + reach), abs=0.25 * error)


def test_without_spread_both_ends_are_the_ratio() -> None:
    assert ratio_interval([1.0, 2.0], [10.0, 20.0], 0.9, seed=0) == pytest.approx((0.1, 0.1))
    assert ratio_interval([2.0], [4.0], 0.9, seed=0) == (0.5, 0.5)
