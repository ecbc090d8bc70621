"""Whether a difference between two runs over the same items is more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy.stats import binomtest

from exporter.methods.bootstrap import ratio_interval

CONFIDENCE = 0.95


def flips(first: Sequence[bool], second: Sequence[bool]) -> dict[str, float]:
    """Compare two runs (n,) over the same items, in the same order.

    Returns numbers of items by what is right: "both", "only_first", "only_second" and "neither"; and "p_value", exact
    McNemar test, two-sided: the probability of a split as uneven as this, were each flip as likely either way.
    """
    pairs: list[tuple[bool, ...]] = list(zip(first, second, strict=True))
    both, gone, come, neither = (pairs.count(pair) for pair in product((True, False), repeat=2))
    p_value = float(binomtest(gone, gone + come).pvalue) if gone + come else 1.0
    return {"both": both, "only_first": gone, "only_second": come, "neither": neither, "p_value": p_value}


def loss_rise(first: Sequence[float], second: Sequence[float], tokens: Sequence[int], seed: int) -> dict[str, float]:
    """Rise of the mean token loss from the first to the second run. The losses (n,) are sums over each text's tokens.

    Returns "mean", and "low" and "high" of its 95 % interval over texts (paired percentile bootstrap), in nats.
    """
    difference, count = np.subtract(second, first), np.asarray(tokens, float)
    low, high = ratio_interval(difference, count, CONFIDENCE, seed)
    return {"mean": float(difference.sum() / count.sum()), "low": low, "high": high}
