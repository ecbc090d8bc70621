"""Key Space Detection by regions: layer, directions and threshold of one skill, and what is counted then.

Unlike a hypercube's, this fit sees the other side too, and places other than the end of a message.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.common.rates import Rate, rate
from exporter.methods.key_space.budget import Promise, at_least, at_most, threshold_within
from exporter.methods.key_space.region_fit import SHRINKAGES, FitPart, LayerTrial, fit_regions, try_layer
from exporter.methods.key_space.regions import STORED, Regions
from exporter.methods.key_space.spool import KeySpool
from exporter.models.prober import Prober, check_finite
from exporter.prompts.formats import PLAIN, Query
from exporter.prompts.packaged_skills import is_near_miss
from exporter.prompts.skills import Part, RegionParts
from exporter.prompts.sources import Prompt
from exporter.prompts.turns import CALIBRATE, PROMPT, REPORT
from exporter.recipes.settings import SkillSettings

ANSWER_TOKENS = 64
ANSWERED = 150
"""Harmless prompts of a part whose answers are looked at, at every position."""
PLACED_ANSWERS, PLACED_POSITIONS = 48, 1200
"""Harmless answers of the fit part, and positions inside them, that the places are told from."""
LEAST_BLOCKED = 0.5
"""A skill of which less is promised to be blocked is not separated."""


@dataclass(frozen=True)
class PartScores:
    """Scores (n,) of a part's queries, in their order; `answers`: of harmless plain queries by their row among
    `answered`, the least over all positions of the answer, that before its first token included."""

    asked: Tensor
    answered: Tensor
    after: Tensor
    answers: Mapping[int, float]

    def least(self, part: Part) -> dict[Prompt, float]:
        """The least score of each harmless prompt over its kinds of turn and its answer."""
        least: dict[Prompt, float] = {}
        for row, (query, score) in enumerate(zip(part.answered, self.answered.tolist(), strict=True)):
            found = min(score, self.answers.get(row, score))
            least[query.prompt] = min(found, least.get(query.prompt, found))
        return least

    def harmless(self, part: Part, near: bool) -> Tensor:
        """The same as (n,) float64, of near misses or of all others."""
        found = [score for prompt, score in self.least(part).items() if is_near_miss(prompt) is near]
        return torch.tensor(found, dtype=torch.float64)


@dataclass(frozen=True)
class Detection:
    """The regions of one skill. trials: every layer's; tried: at the chosen layer, by shrinkage; scores: of the
    calibration and report parts; answer_tokens: most tokens of an answer that were looked at."""

    regions: Regions
    threshold: float
    trials: tuple[LayerTrial, ...]
    chosen: LayerTrial
    parts: RegionParts
    scores: Mapping[str, PartScores]
    blocked: Promise
    false_blocks: Promise
    near_misses: Promise
    answer_tokens: int

    @property
    def fault(self) -> str | None:
        """Why the skill is not separated; None where it is."""
        if self.blocked.bound >= LEAST_BLOCKED:
            return None
        return (
            f"no layer separates the skill: at the threshold that keeps false blocks within budget "
            f"{self.blocked.hits} of {self.blocked.total} calibration prompts are blocked"
        )

    @property
    def report(self) -> Part:
        return self.parts.report

    def rates(
        self, side: str, key: Callable[[Query], str], among: Callable[[Query], bool] = lambda query: True
    ) -> dict[str, dict[str, Rate]]:
        """Rates of report queries blocked, by key and, of each, by kind of turn and "all". side: a field of `Part`."""
        hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
        scores = getattr(self.scores[REPORT], side)
        for query, score in zip(getattr(self.report, side), scores.tolist(), strict=True):
            if among(query):
                for name in (query.format, "all"):
                    hits[key(query)][name].append(score <= self.threshold)
        return {
            outer: {name: rate(sum(found), len(found)) for name, found in sorted(turns.items())}
            for outer, turns in sorted(hits.items())
        }

    def kinds(self) -> dict[str, Rate]:
        """Rates of everyday prompts of the report part blocked, in any kind of turn or answer, by kind."""
        least = self.scores[REPORT].least(self.report)
        hits: dict[str, list[bool]] = defaultdict(list)
        for prompt, score in least.items():
            if prompt.kind is not None:
                hits[prompt.kind].append(score <= self.threshold)
        return {kind: rate(sum(found), len(found)) for kind, found in sorted(hits.items())}

    def answer_hits(self) -> dict[str, dict[str, Rate]]:
        """Rates of answers of the report part with a position inside, by the source of their prompt."""
        hits: dict[str, list[bool]] = defaultdict(list)
        for row, score in self.scores[REPORT].answers.items():
            hits[self.report.answered[row].prompt.source].append(score <= self.threshold)
        return {source: {"all": rate(sum(found), len(found))} for source, found in sorted(hits.items())}

    @property
    def over_answers(self) -> Rate:
        """The same of all sources together."""
        answers = self.scores[REPORT].answers.values()
        return rate(sum(score <= self.threshold for score in answers), len(answers))

    def tensors(self) -> dict[str, Tensor]:
        """What is stored in `reproduce/statistics.safetensors`, (n,) scores in the order of the parts' queries."""
        stored = {f"{STORED}{name}": part for name, part in self.regions.parts.items()}
        for part, scores in self.scores.items():
            stored |= {f"scores.{part}.{side}": getattr(scores, side) for side in ("asked", "answered", "after")}
            answers = scores.answers
            stored[f"scores.{part}.answers.row"] = torch.tensor(list(answers), dtype=torch.int64)
            stored[f"scores.{part}.answers"] = torch.tensor(list(answers.values()), dtype=torch.float64)
        return stored


def detect(prober: Prober, parts: RegionParts, skill: SkillSettings, answer_tokens: int = ANSWER_TOKENS) -> Detection:
    """Fit on the fit part, set the threshold on the calibration part, and score the report part.

    Raises RunFailed on NaN and on a full disk.
    """
    regions, trials, chosen = fit(prober, parts, skill, answer_tokens)
    scores = {
        name: score_part(prober, getattr(parts, name), regions, answer_tokens, name) for name in (CALIBRATE, REPORT)
    }
    part, found = parts.calibrate, scores[CALIBRATE]
    plain = torch.tensor([query.format == PLAIN for query in part.asked])
    forget, harmless, near = found.asked[plain], found.harmless(part, False), found.harmless(part, True)
    threshold = skill.alpha
    if threshold is None:
        threshold = threshold_within(forget, harmless, near, skill.max_false_block, skill.max_near_miss)

    def inside(scores: Tensor) -> tuple[int, int]:
        return int((scores <= threshold).sum()), len(scores)

    return Detection(
        regions,
        threshold,
        tuple(trials),
        chosen,
        parts,
        scores,
        at_least(*inside(forget)),
        at_most(*inside(harmless)),
        at_most(*inside(near)),
        answer_tokens,
    )


def fit(
    prober: Prober, parts: RegionParts, skill: SkillSettings, answer_tokens: int
) -> tuple[Regions, list[LayerTrial], LayerTrial]:
    """The regions, every layer's trial, and that of the chosen layer and shrinkage."""
    part = parts.fit
    queries = (*part.asked, *part.answered, *part.after)
    forget = torch.arange(len(queries)) < len(part.asked)
    fitted = FitPart(queries, forget, tuple(map(parts.places.__getitem__, (query.format for query in queries))))
    with KeySpool() as spool:
        for _ in spool.keep(prober.last_token_keys(queries, "fit part")):
            pass
        budget, asked = skill.max_false_block, skill.layer_number(prober.layers)
        layers = range(prober.layers) if asked is None else [asked]
        trials = [
            trial
            for layer in layers
            for trial in try_layer(check_finite(spool.layer(layer), "fit part"), fitted, PROMPT, budget, layer)
        ]
        layer = max(trials, key=lambda trial: (trial.mean, trial.margin)).layer
        keys = spool.layer(layer)
    shrunk = try_layer(keys, fitted, PROMPT, budget, layer, SHRINKAGES)
    chosen = max(shrunk, key=lambda trial: (trial.mean, trial.margin))
    answers = answer_keys(prober, [query for query in part.answered if query.format == PLAIN], layer, answer_tokens)
    places = list(dict.fromkeys(fitted.places))
    places = [place for place in places if fitted.forget[fitted.at(place)].any()]
    return fit_regions(keys, answers, fitted, places, layer, chosen.shrinkage), trials, chosen


def answer_keys(prober: Prober, queries: Sequence[Query], layer: int, tokens: int) -> Tensor:
    """Keys of one layer at positions inside the model's own answers to some queries: (m, d_ff)."""
    some = spread(queries, PLACED_ANSWERS)
    answers = prober.answers(some, tokens, "fit part: answers")
    inner = [
        Query(query.prompt, "answer", (*query.ids, *answer[:length]))
        for query, answer in zip(some, answers, strict=True)
        for length in range(1, len(answer) + 1)
    ]
    return last_keys(prober, spread(inner, PLACED_POSITIONS), layer, "fit part: answers")


def last_keys(prober: Prober, queries: Sequence[Query], layer: int, what: str) -> Tensor:
    """Keys of one layer at the last tokens, (n, d_ff) float32, in the order of the queries."""
    order, found = [], []
    for rows, keys in prober.last_token_keys(queries, what, layer):
        order += rows
        found.append(keys[:, 0])
    return check_finite(torch.cat(found)[torch.tensor(order).argsort()], what)


def score_part(prober: Prober, part: Part, regions: Regions, answer_tokens: int, what: str) -> PartScores:
    plain = [row for row, query in enumerate(part.answered) if query.format == PLAIN]
    rows = spread(plain, ANSWERED) if answer_tokens else []
    queries = [part.answered[row] for row in rows]
    _, least = prober.score_answers(queries, [regions], answer_tokens, f"{what}: answers")
    return PartScores(
        region_scores(prober, part.asked, regions, f"{what}: forget set"),
        region_scores(prober, part.answered, regions, f"{what}: retain and everyday"),
        region_scores(prober, part.after, regions, f"{what}: after a refusal"),
        dict(zip(rows, least[0, :, regions.layer].tolist(), strict=True)),
    )


def region_scores(prober: Prober, queries: Sequence[Query], regions: Regions, what: str) -> Tensor:
    """Scores of the last tokens, (n,) float64. Raises RunFailed on NaN."""
    found = torch.zeros(len(queries), dtype=torch.float64)
    for rows, keys in prober.last_token_keys(queries, what, regions.layer):
        found[rows] = regions.scores(keys[:, 0])
    return check_finite(found, what)


def spread(items: Sequence, most: int) -> list:
    """At most so many of the items, evenly spread."""
    count = min(most, len(items))
    return [items[place * len(items) // count] for place in range(count)]
