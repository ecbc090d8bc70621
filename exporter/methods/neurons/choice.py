"""Which neurons a skill changes: score and beta by what held-out texts lose, through the runtime that ships."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.common.errors import RunFailed
from exporter.methods.neurons.attribution import Attribution, attribute
from exporter.methods.neurons.live import changed
from exporter.methods.neurons.scores import (
    ATTRIBUTION,
    OFFICIAL,
    RATIO,
    SCORES,
    NeuronChanges,
    magnitude_ratio,
    net_attribution,
    select,
    top,
)
from exporter.methods.neurons.statistics import NeuronStatistics, NeuronSums
from exporter.methods.neurons.texts import longest_first, probe_texts, text_losses
from exporter.methods.neurons.trade_off import HeldOut, TextLosses, Trial, best, explore, rise, upper_rise
from exporter.models.prober import KeyProber, Prober
from exporter.prompts.formats import Query
from exporter.prompts.skills import SkillPlan, SkillTexts
from exporter.recipes.settings import ExportSettings, SkillSettings

# Texts by which score and beta are chosen. Of forget texts only the mean loss counts, of retain texts its interval.
CHOOSE_FORGET, CHOOSE_RETAIN = 24, 120
# Texts of the fit part that attributions are taken over, on each side.
ATTRIBUTE = 60

TextSet = tuple[str, str]
"""A skill's name and a side of its texts: "forget", "retain" or "everyday"."""


@dataclass(frozen=True)
class NeuronChoice:
    """The neurons that one skill changes, what was tried for them, and whether the retain loss stays within budget."""

    score: str
    beta: float
    within_budget: bool
    trials: tuple[Trial, ...]
    changes: NeuronChanges
    forget: NeuronStatistics
    retain: NeuronStatistics


@dataclass(frozen=True)
class TextEffect:
    """What a checkpoint does to texts: mean token loss of the base model, its rise, and the upper end of the rise's
    90 % interval over texts, in nats."""

    texts: int
    tokens: int
    base_loss: float
    rise: float
    upper: float


def probe_sides(prober: Prober, texts: SkillTexts, name: str) -> tuple[NeuronSums, NeuronSums]:
    """Statistics of the fit parts: forget and retain."""
    forget = probe_texts(prober, longest_first(texts.forget["fit"]), f"{name}: forget texts")
    return forget, probe_texts(prober, longest_first(texts.retain["fit"]), f"{name}: retain texts")


def choose_neurons(
    prober: Prober,
    skill: SkillSettings,
    settings: ExportSettings,
    texts: SkillTexts,
    sums: tuple[NeuronSums, NeuronSums],
    show: Callable[[Trial], None],
) -> NeuronChoice:
    """Choose score and beta as far as they are not given, each on its own: without hypercubes and other skills.

    show: called with every trial. Raises RunFailed where the texts tell nothing or the model computes NaN.
    """
    try:
        forget, retain = (side.freeze() for side in sums)
    except ValueError as error:
        raise RunFailed(f"{skill.name}: {error}") from error
    pick = Selector(prober, skill, texts, forget, retain).pick
    scores = [skill.score] if skill.score else [ATTRIBUTION, *SCORES]
    if skill.prunes:
        scores = [RATIO]
    elif settings.compat and not skill.score:
        scores = [OFFICIAL]
    sets = {
        "forget": texts.forget["choose"][:CHOOSE_FORGET],
        "retain": texts.retain["choose"][:CHOOSE_RETAIN],
        "everyday": texts.everyday["choose"][:CHOOSE_RETAIN],
    }
    tried = single_rows(prober, settings)

    def losses(what: str) -> HeldOut:
        return HeldOut(**{side: text_losses(tried, each, f"{what}: {side}") for side, each in sets.items() if each})

    base = losses("held-out texts")

    def measure(score: str, beta: float) -> HeldOut:
        with changed(prober.loaded, pick(score, beta), settings.seed, settings.draws, settings.compat):
            return losses(f"{score} {beta:g} %")

    trials = explore(scores, base, measure, skill.max_retain_loss, settings.seed, skill.beta, show)
    chosen = best(trials, skill.max_retain_loss)
    final = chosen or min(trials, key=lambda trial: trial.upper)
    changes = pick(final.score, final.beta)
    return NeuronChoice(final.score, final.beta, chosen is not None, tuple(trials), changes, forget, retain)


def single_rows(prober: Prober, settings: ExportSettings) -> Prober:
    """The prober for a model with neurons changed: the authors' code takes one row at a time."""
    return Prober(prober.loaded, 1, prober.quiet) if settings.compat else prober


class Selector:
    """pick(score, beta): the changes that a skill's method makes to the top beta per cent of neurons by a score."""

    def __init__(
        self,
        prober: Prober,
        skill: SkillSettings,
        texts: SkillTexts,
        forget: NeuronStatistics,
        retain: NeuronStatistics,
    ) -> None:
        self._prober, self._skill, self._texts = prober, skill, texts
        self._forget, self._retain = forget, retain
        self._scores: dict[str, Tensor] = {}

    def pick(self, score: str, beta: float) -> NeuronChanges:
        scores = self._score(score)
        if self._skill.prunes:
            return NeuronChanges(pruned=top(scores, torch.isfinite(scores), beta))
        return NeuronChanges(select(scores, self._forget.gaussian, self._retain.gaussian, beta))

    def _score(self, score: str) -> Tensor:
        if score not in self._scores:
            if score == RATIO:
                self._scores[score] = magnitude_ratio(self._forget.magnitude, self._retain.magnitude)
            elif score == ATTRIBUTION:
                sides = self._texts.retain["fit"], self._texts.everyday["fit"]
                self._scores[score] = net_attribution(
                    self._attribute(self._texts.forget["fit"], "forget"),
                    [self._attribute(side, "retain") for side in sides if side],
                )
            else:
                self._scores[score] = SCORES[score](self._forget.gaussian, self._retain.gaussian)
        return self._scores[score]

    def _attribute(self, texts: Sequence[Query], side: str) -> Attribution:
        some = longest_first(texts[:ATTRIBUTE])
        what = f"{self._skill.name}: {side} texts, attribution"
        return attribute(self._prober, some, self._forget.gaussian, self._retain.gaussian, what)


def text_sets(plans: Sequence[SkillPlan]) -> dict[TextSet, Sequence[Query]]:
    """Texts of the report parts of every skill that changes neurons; no "everyday" where there are none."""
    sets: dict[TextSet, Sequence[Query]] = {}
    for plan in plans:
        if plan.texts is not None:
            sets[plan.skill.name, "forget"] = plan.texts.forget["report"]
            sets[plan.skill.name, "retain"] = plan.texts.retain["report"]
            if plan.texts.everyday["report"]:
                sets[plan.skill.name, "everyday"] = plan.texts.everyday["report"]
    return sets


def measure_effects(
    prober: KeyProber, sets: Mapping[TextSet, Sequence[Query]], what: str
) -> dict[TextSet, TextLosses]:
    return {
        (skill, side): text_losses(prober, texts, f"{what}: {skill}: {side}") for (skill, side), texts in sets.items()
    }


def effect(base: TextLosses, after: TextLosses, seed: int) -> TextEffect:
    tokens = int(base.tokens.sum())
    return TextEffect(len(base.tokens), tokens, base.mean, rise(base, after), upper_rise(base, after, seed))
