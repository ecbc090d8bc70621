"""Whether a difference between two runs over the same items is more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from exporter.methods.bootstrap import ratio_interval

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Flips:
    """Items right in one run and wrong in the other. `p_value`: exact McNemar test, two-sided: the probability of a
    split as uneven as this, were each flip as likely either way."""

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float


def flips(first: Sequence[bool], second: Sequence[bool]) -> Flips:
    """Compare two runs (n,) over the same items, in the same order."""
    pairs = list(zip(first, second, strict=True))
    gone, come = pairs.count((True, False)), pairs.count((False, True))
    p_value = float(binomtest(gone, gone + come).pvalue) if gone + come else 1.0
    return Flips(pairs.count((True, True)), gone, come, pairs.count((False, False)), p_value)


@dataclass(frozen=True)
class Rise:
    """Rise of the mean token loss in nats, with its 95 % interval over texts (paired percentile bootstrap)."""

    mean: float
    low: float
    high: float


def loss_rise(first: Sequence[float], second: Sequence[float], tokens: Sequence[int], seed: int) -> Rise:
    """Rise from the first to the second run. The losses (n,) are sums over each text's tokens, in nats."""
    difference, count = np.subtract(second, first), np.asarray(tokens, float)
    low, high = ratio_interval(difference, count, CONFIDENCE, seed)
    return Rise(float(difference.sum() / count.sum()), low, high)
