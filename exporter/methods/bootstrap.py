"""Intervals of a ratio of sums over texts by the paired percentile bootstrap."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import bootstrap

RESAMPLES = 2000


def ratio_interval(above: ArrayLike, below: ArrayLike, confidence: float, seed: int) -> tuple[float, float]:
    """Lower and upper end of the interval of sum(above) / sum(below); both (n,), one entry per text.

    Texts are resampled with both of their entries. If all texts have the same ratio, both ends are this ratio.
    """
    above, below = np.asarray(above, float), np.asarray(below, float)
    if len(below) < 2 or np.ptp(above / below) == 0:
        whole = float(above.sum() / below.sum())
        return whole, whole  # scipy's bootstrap fails without spread

    def ratio(rows: np.ndarray, of: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(rows.sum(axis) / of.sum(axis))

    found = bootstrap(
        (above, below),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
