"""How many neurons, by which score: the most forgetting within the retain budget, on held-out texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from exporter.methods.bootstrap import ratio_interval

BETAS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0)
"""Percentages that are tried, until retain texts lose too much or nothing more is gained; the last is all neurons."""
HALVINGS = 6
"""Most trials below the least of BETAS where nothing is within budget: down to 0.008 %, a handful of neurons."""
REFINEMENTS = 2
"""Further trials above the best, each half way to the next greater percentage that was tried."""
FAR = 3.0
"""A retain loss that rises by so many times the budget comes down no more as further neurons are taken."""
CONFIDENCE = 0.9
"""Of the intervals whose upper ends are compared."""


@dataclass(frozen=True)
class TextLosses:
    """Sum of the token losses of each text, in nats, and how many tokens were predicted: (n,) float64 each."""

    total: Tensor
    tokens: Tensor

    @property
    def mean(self) -> float:
        """Mean loss of a token; exp of it is the perplexity."""
        return float(self.total.sum() / self.tokens.sum())


@dataclass(frozen=True)
class Trial:
    """What one choice of neurons costs and brings, against the base: rises of the mean token loss, in nats.

    everyday_rise: None without everyday prompts; upper: the greater upper end of the intervals of both.
    """

    score: str
    beta: float
    forget_rise: float
    retain_rise: float
    everyday_rise: float | None
    upper: float


@dataclass(frozen=True)
class HeldOut:
    """Losses of the texts by which choices are judged; everyday: None without everyday prompts."""

    forget: TextLosses
    retain: TextLosses
    everyday: TextLosses | None = None


Measure = Callable[[str, float], HeldOut]
"""Losses of the held-out texts with the top beta per cent by a score."""


def rise(base: TextLosses, changed: TextLosses) -> float:
    return changed.mean - base.mean


def upper_rise(base: TextLosses, changed: TextLosses, seed: int) -> float:
    """Upper end of the paired bootstrap interval of the rise: whole texts are drawn, with all of their tokens."""
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
    """Every trial made, in the order of their making: the first score should be the one that promises most.

    budget: the greatest rise of the loss of retain texts, and of everyday prompts, in nats per token, by the upper end
    of its interval; beta: the one percentage to be tried with every score, None for BETAS upwards, HALVINGS of the
    least where nothing is within budget, and then REFINEMENTS above the best.

    A score is left as soon as the rise is FAR above the budget, or above it and no less than with fewer neurons, or
    above it at a lesser forget rise than the best trial within budget has; when more neurons forget less; and when
    another score forgets more at a lesser rise.
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
        # One within budget that forgets nothing: fewer neurons forget no more.
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
    """The trial within budget that forgets most; None where none within budget forgets anything."""
    within = [trial for trial in trials if trial.upper <= budget and trial.forget_rise > 0]
    return max(within, key=lambda trial: trial.forget_rise, default=None)
