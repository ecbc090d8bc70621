"""Which neurons a skill changes: score and beta by the losses of held-out texts, with the checkpoint's own runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from exporter.common.errors import RunFailed
from exporter.methods.neurons.applied import changed
from exporter.methods.neurons.attribution import Attribution, attribute
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

# Texts for choosing score and beta: forget texts count by their mean loss alone, retain texts by its interval.
CHOOSE_FORGET, CHOOSE_RETAIN = 24, 120
# Texts of the fit part used for attributions, on each side.
ATTRIBUTE = 60

TextSet = tuple[str, str]
"""A skill's name and a side of its texts: "forget", "retain" or "everyday"."""


@dataclass(frozen=True)
class NeuronChoice:
    """The neurons that one skill changes, the trials, and whether the retain loss stays within budget."""

    score: str
    beta: float
    within_budget: bool
    trials: tuple[Trial, ...]
    changes: NeuronChanges
    forget: NeuronStatistics
    retain: NeuronStatistics


@dataclass(frozen=True)
class TextEffect:
    """A checkpoint's effect on texts: mean token loss of the base model, its rise, and the upper end of the rise's
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
    """Choose score and beta unless given, without hypercubes and for each skill alone.

    show: called with every trial. Raises RunFailed if statistics cannot be computed or the model computes NaN.
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
    """The prober for a model with changed neurons: the authors' code takes one row at a time."""
    return replace(prober, batch_size=1) if settings.compat else prober


@dataclass
class Selector:
    """Picks the top neurons of a skill by a score, which is computed once."""

    prober: Prober
    skill: SkillSettings
    texts: SkillTexts
    forget: NeuronStatistics
    retain: NeuronStatistics
    scores: dict[str, Tensor] = field(init=False, default_factory=dict)

    def pick(self, score: str, beta: float) -> NeuronChanges:
        """The changes that the skill's method makes to the top beta per cent of neurons by a score."""
        if score not in self.scores:
            self.scores[score] = self._score(score)
        scores = self.scores[score]
        if self.skill.prunes:
            return NeuronChanges(pruned=top(scores, torch.isfinite(scores), beta))
        return NeuronChanges(select(scores, self.forget.gaussian, self.retain.gaussian, beta))

    def _score(self, score: str) -> Tensor:
        if score == RATIO:
            return magnitude_ratio(self.forget.magnitude, self.retain.magnitude)
        if score != ATTRIBUTION:
            return SCORES[score](self.forget.gaussian, self.retain.gaussian)
        forget = self._attribute(self.texts.forget["fit"], "forget")
        sides = self.texts.retain["fit"], self.texts.everyday["fit"]
        return net_attribution(forget, [self._attribute(side, "retain") for side in sides if side])

    def _attribute(self, texts: Sequence[Query], side: str) -> Attribution:
        some = longest_first(texts[:ATTRIBUTE])
        what = f"{self.skill.name}: {side} texts, attribution"
        return attribute(self.prober, some, self.forget.gaussian, self.retain.gaussian, what)


def text_sets(plans: Sequence[SkillPlan]) -> dict[TextSet, Sequence[Query]]:
    """Texts of the report parts of every skill that changes neurons; "everyday" only if there are any."""
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
