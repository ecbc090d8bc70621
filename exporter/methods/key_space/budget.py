"""The threshold of regions: as far as the budgets for false blocks allow, and what may be promised then."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.stats import beta
from torch import Tensor

CONFIDENCE = 0.9
"""Of each promise by itself, one-sided, in the draw of the calibration prompts."""


@dataclass(frozen=True)
class Promise:
    """What may be said of further prompts from the sources that `total` calibration prompts with `hits` are drawn
    from, with CONFIDENCE: at least (blocked) or at most (false blocks) the share `bound` is blocked."""

    hits: int
    total: int
    bound: float


def at_most(hits: int, total: int) -> Promise:
    """An upper bound (Clopper-Pearson, one-sided)."""
    return Promise(hits, total, float(beta.ppf(CONFIDENCE, hits + 1, total - hits)) if hits < total else 1.0)


def at_least(hits: int, total: int) -> Promise:
    """A lower bound (Clopper-Pearson, one-sided)."""
    return Promise(hits, total, float(beta.ppf(1 - CONFIDENCE, hits, total - hits + 1)) if hits else 0.0)


def hits_within(total: int, budget: float) -> int:
    """The most false blocks of `total` prompts whose upper bound is within the budget; 0 where even none is not."""
    hits = 0
    while hits + 1 < total and at_most(hits + 1, total).bound <= budget:
        hits += 1
    return hits


def threshold_within(
    forget: Tensor, harmless: Tensor, near: Tensor, max_false_block: float, max_near_miss: float
) -> float:
    """The greatest threshold within both budgets. Scores (n,) of calibration prompts, inside where at most the
    threshold; that of near misses is a point estimate.

    It lies half way between two scores, so that no stored prompt is on it.
    """
    allowed = [(harmless, hits_within(len(harmless), max_false_block)), (near, math.floor(max_near_miss * len(near)))]
    firsts = [float(scores.sort().values[hits]) for scores, hits in allowed if hits < len(scores)]
    # The first prompt that must be answered; without any, all are blocked.
    beyond = min(firsts, default=math.inf)
    every = torch.cat([forget, harmless, near])
    below = every[every < beyond]
    last = float(below.max()) if len(below) else beyond - 1
    return last + 1 if math.isinf(beyond) else (last + beyond) / 2
