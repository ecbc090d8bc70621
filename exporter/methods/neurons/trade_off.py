"""How many neurons, by which score: the most forgetting within the retain budget, on held-out texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from exporter.methods.bootstrap import ratio_interval

BETAS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0)
"""Percentages to try, until retain texts lose too much or no more is forgotten; the last is all neurons."""
HALVINGS = 6
"""Maximum of trials below the smallest of BETAS if nothing is within budget: down to 0.008 %, a few neurons."""
REFINEMENTS = 2
"""Further trials above the best, each halfway to the next larger percentage that was tried."""
FAR = 3.0
"""A rise of the retain loss by so many times the budget does not come down again with more neurons."""
CONFIDENCE = 0.9
"""Confidence of the intervals whose upper ends are compared."""


@dataclass(frozen=True)
class TextLosses:
    """Sum of the token losses of each text, in nats, and number of predicted tokens: (n,) float64 each."""

    total: Tensor
    tokens: Tensor

    @property
    def mean(self) -> float:
        """Mean token loss, the logarithm of the perplexity."""
        return float(self.total.sum() / self.tokens.sum())


@dataclass(frozen=True)
class Trial:
    """One choice of neurons against the base: rises of the mean token loss, in nats.

    everyday_rise: None without everyday prompts; upper: the larger upper end of the retain and everyday intervals.
    """

    score: str
    beta: float
    forget_rise: float
    retain_rise: float
    everyday_rise: float | None
    upper: float


@dataclass(frozen=True)
class HeldOut:
    """Losses of the texts that choices are judged by; everyday: None without everyday prompts."""

    forget: TextLosses
    retain: TextLosses
    everyday: TextLosses | None = None


Measure = Callable[[str, float], HeldOut]
"""Losses of the held-out texts with the top beta per cent by a score."""


def rise(base: TextLosses, changed: TextLosses) -> float:
    return changed.mean - base.mean


def upper_rise(base: TextLosses, changed: TextLosses, seed: int) -> float:
    """Upper end of the paired bootstrap interval of the rise, over whole texts."""
    return ratio_interval(changed.total - base.total, base.tokens, CONFIDENCE, seed)[1]


def explore(
    scores: Sequence[str],
    base: HeldOut,
    measure: Measure,
    budget: float,
    seed: int,
    beta: float | None = None,
    show: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """All trials, in order; scores: the most promising one first.

    budget: the largest rise of the loss of retain texts, and of everyday prompts, in nats per token, by the upper end
    of its interval; beta: the only percentage to try with every score, None for BETAS upwards, HALVINGS of the
    smallest if nothing is within budget, and then REFINEMENTS above the best.

    A score is abandoned as soon as the rise is FAR above the budget; or above it and no smaller than with fewer
    neurons; or above it with a smaller forget rise than the best trial within budget; when more neurons forget less;
    and when another score forgets more with a smaller rise.
    """
    trials: list[Trial] = []

    def attempt(score: str, percent: float) -> Trial:
        found = measure(score, percent)
        uppers = [upper_rise(base.retain, found.retain, seed)]
        everyday = None
        if base.everyday is not None and found.everyday is not None:
            everyday = rise(base.everyday, found.everyday)
            uppers.append(upper_rise(base.everyday, found.everyday, seed))
        forget, retain = rise(base.forget, found.forget), rise(base.retain, found.retain)
        trial = Trial(score, percent, forget, retain, everyday, max(uppers))
        trials.append(trial)
        show(trial)
        return trial

    for score in scores:
        last = None
        for percent in (beta,) if beta is not None else BETAS:
            trial = attempt(score, percent)
            above = trial.upper > budget
            leader = best(trials, budget)
            if leader is not None and leader.score != score and dominates(leader, trial):
                break
            if trial.upper > FAR * budget:
                break
            if above and (
                (last is not None and last.upper > budget and trial.upper >= last.upper)
                or (leader is not None and trial.forget_rise < leader.forget_rise)
            ):
                break
            if last is not None and trial.forget_rise < last.forget_rise:
                break
            last = trial
    if beta is not None:
        return trials
    for _ in range(HALVINGS):
        least = min(trials, key=lambda trial: trial.upper)
        # If it is within budget but forgets nothing, fewer neurons will not forget more.
        if least.upper <= budget:
            break
        attempt(least.score, min(trial.beta for trial in trials if trial.score == least.score) / 2)
    for _ in range(REFINEMENTS):
        leader = best(trials, budget)
        if leader is None:
            break
        greater = [trial.beta for trial in trials if trial.score == leader.score and trial.beta > leader.beta]
        if not greater:
            break
        attempt(leader.score, (leader.beta + min(greater)) / 2)
    return trials


def dominates(one: Trial, other: Trial) -> bool:
    return one.forget_rise >= other.forget_rise and one.upper <= other.upper


def best(trials: Sequence[Trial], budget: float) -> Trial | None:
    """The trial within budget that forgets most; None if no trial within budget forgets anything."""
    within = [trial for trial in trials if trial.upper <= budget and trial.forget_rise > 0]
    return max(within, key=lambda trial: trial.forget_rise, default=None)
