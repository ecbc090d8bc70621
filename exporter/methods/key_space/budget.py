"""The threshold of regions: as far as the budgets for false blocks allow, and what may be promised then."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import beta
from torch import Tensor

CONFIDENCE = 0.9
"""Of each promise by itself, one-sided, in the draw of the prompts that the threshold is set on."""


@dataclass(frozen=True)
class Promise:
    """What may be said of further prompts from the sources that `total` prompts with `hits` are drawn from, with
    CONFIDENCE: at least (blocked) or at most (false blocks) the share `bound` is blocked."""

    hits: int
    total: int
    bound: float


def at_most(hits: int, total: int, places: int = 1, confidence: float = CONFIDENCE) -> Promise:
    """An upper bound (Clopper-Pearson, one-sided).

    places: how many thresholds were set on these prompts. Each of them may reach up to the next prompt, so that the
    share inside is one of `hits + places` of the gaps between `total` prompts, not of `hits + 1`.
    """
    gaps = hits + places
    return Promise(hits, total, float(beta.ppf(confidence, gaps, total + 1 - gaps)) if gaps <= total else 1.0)


def at_least(hits: int, total: int) -> Promise:
    """A lower bound (Clopper-Pearson, one-sided)."""
    return Promise(hits, total, float(beta.ppf(1 - CONFIDENCE, hits, total - hits + 1)) if hits else 0.0)


def hits_within(total: int, budget: float, places: int = 1) -> int:
    """The most false blocks of `total` prompts whose upper bound is within the budget; 0 where even none is not."""
    hits = 0
    while hits + places < total and at_most(hits + 1, total, places).bound <= budget:
        hits += 1
    return hits


def prompts_within(budget: float, places: int = 1) -> int:
    """The least number of prompts whose upper bound is within a budget above 0 where none of them is inside."""
    return (
        bisect_left(range(places, 2**40), True, key=lambda total: at_most(0, total, places).bound <= budget) + places
    )


def thresholds_within(
    forget: Tensor, harmless: Tensor, groups: Sequence[tuple[Tensor, float]], max_false_block: float
) -> Tensor:
    """Of each place the greatest threshold within all budgets: (K,).

    Scores (n, K) float64, inside where at most the threshold. A harmless prompt counts once over all places. All that
    may be inside are at the first place, the end of a message, or half of them at another one, whichever blocks the
    most forget rows; to choose freely between all ways to deal them would break the bound. groups: other harmless
    prompts or answers, and the share of them that may be inside at each place, a point estimate. A threshold lies half
    way between two scores, so that no stored prompt is on it.
    """
    places = forget.shape[1]
    nearest = torch.full((places,), torch.inf, dtype=torch.float64)
    for scores, budget in groups:
        if (allowed := math.floor(budget * len(scores))) < len(scores):
            nearest = torch.minimum(nearest, scores.sort(0).values[allowed])
    every = torch.cat([forget, harmless, *(scores for scores, _ in groups)])
    ordered = harmless.sort(0).values

    def between(hits: Sequence[int]) -> Tensor:
        """Thresholds with so many of the harmless prompts inside at each place."""
        beyond = nearest
        if len(ordered):
            beyond = torch.minimum(nearest, ordered[list(hits), range(places)])
        below = torch.where(every < beyond, every, -torch.inf).amax(0) if len(every) else -beyond
        # Where no score is below or beyond, any number on the other side of the one that there is.
        below, beyond = torch.where(below.isinf(), beyond - 1, below), torch.where(beyond.isinf(), below + 1, beyond)
        return (below + beyond) / 2

    hits = min(hits_within(len(harmless), max_false_block, places), max(len(harmless) - 1, 0))
    elsewhere = [
        (hits - hits // 2, *[hits // 2 * (place == other) for place in range(1, places)]) for other in range(1, places)
    ]
    ways = [between(dealt) for dealt in ((hits, *[0] * (places - 1)), *elsewhere)]
    return max(ways, key=lambda thresholds: int((forget <= thresholds).any(1).sum()))
