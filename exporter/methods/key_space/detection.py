"""Key Space Detection by regions: layer, directions and threshold of one skill, and what is counted then.

Unlike a hypercube's, this fit sees the other side too, and places other than the end of a message.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exporter.common.rates import Rate, rate
from exporter.methods.bootstrap import ratio_interval
from exporter.methods.key_space.budget import Promise, at_least, at_most
from exporter.methods.key_space.region_fit import LayerTrial
from exporter.methods.key_space.region_probe import ANSWER_TOKENS, REPORTED, fit, inside_prompts, score_part
from exporter.methods.key_space.region_scores import PartScores
from exporter.methods.key_space.regions import STORED, Regions
from exporter.methods.key_space.words import words_only
from exporter.models.prober import KeyProber
from exporter.prompts.formats import PLAIN, Query
from exporter.prompts.region_parts import SIDES, Part, RegionParts
from exporter.prompts.turns import FIT, REPORT
from exporter.recipes.settings import SkillSettings

COMMON = 0.5
"""The threshold of all places, once each is levelled to it."""
LEAST_BLOCKED = 0.25
"""A skill of which less is promised to be blocked is not separated."""
LEAST_OF_PLACE = 0.1
"""Share of what is asked at a place that its region has to hold; the first place has one in any case."""


@dataclass(frozen=True)
class Detection:
    """The regions of one skill. trials: every layer's; chosen: the one of its layer and shrinkage; scores: of the
    fit part, each prompt's along directions that had not seen it, but answers' along the final ones, and of the
    report part; answer_tokens: most tokens of an answer that were looked at, 0 for no answers; words: share of plain
    report prompts that their words alone would block within the budgets; interior: share of the positions inside some
    harmless report prompts that are blocked; uncovered: places at which the budgets leave nearly nothing, and that
    have no region."""

    regions: Regions
    threshold: float
    trials: tuple[LayerTrial, ...]
    chosen: LayerTrial
    parts: RegionParts
    scores: Mapping[str, PartScores]
    blocked: Promise
    false_blocks: Promise
    near_misses: Promise
    after_refusals: Promise
    answer_tokens: int
    words: Rate
    interior: Rate
    uncovered: tuple[str, ...] = ()

    @property
    def fault(self) -> str | None:
        """Why the skill is not separated; None where it is."""
        if self.blocked.bound >= LEAST_BLOCKED:
            return None
        tried = "no layer separates" if len(self.trials) > 1 else f"layer {self.chosen.layer} does not separate"
        return (
            f"{tried} the skill: where false blocks are within budget "
            f"{self.blocked.hits} of {self.blocked.total} prompts are blocked"
        )

    @property
    def report(self) -> Part:
        return self.parts.report

    def rates(
        self, side: str, key: Callable[[Query], str], among: Callable[[Query], bool] = lambda query: True
    ) -> dict[str, dict[str, Rate]]:
        """Rates of report queries blocked, by key and, of each, by kind of turn and "all". side: a field of `Part`.

        Intervals are by prompts, and as wide as those by what surrounds them, where that is drawn from many.
        """
        hits: dict[str, dict[str, dict[object, list[bool]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )
        scores, phrases = getattr(self.scores[REPORT], side).tolist(), self.phrases
        for row, (query, score) in enumerate(zip(getattr(self.report, side), scores, strict=True)):
            if among(query):
                around = (query.format, query.variant) if phrases[query.format] > 1 else row
                for name in (query.format, "all"):
                    hits[key(query)][name][around].append(score <= self.threshold)
        return {
            outer: {name: rate_over(list(found.values())) for name, found in sorted(turns.items())}
            for outer, turns in sorted(hits.items())
        }

    @property
    def phrases(self) -> dict[str, int]:
        """How many phrases, system prompts or conversations the report part's queries have, by kind of turn."""
        queries = [query for side in vars(self.report).values() for query in side]
        return dict(Counter(format_ for format_, _ in {(query.format, query.variant) for query in queries}))

    @property
    def plain(self) -> Rate:
        """The rate of plain forget prompts of the report part blocked."""
        pairs = zip(self.report.asked, self.scores[REPORT].asked.tolist(), strict=True)
        hits = [score <= self.threshold for query, score in pairs if query.format == PLAIN]
        return rate(sum(hits), len(hits))

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
            stored |= {f"scores.{side}.{part}": getattr(scores, field) for field, side in SIDES.items()}
            answers = scores.answers
            stored[f"scores.retain.{part}.answer.row"] = torch.tensor(list(answers), dtype=torch.int64)
            stored[f"scores.retain.{part}.answer"] = torch.tensor(list(answers.values()), dtype=torch.float64)
        return stored


def detect(
    prober: KeyProber,
    parts: RegionParts,
    skill: SkillSettings,
    *,
    answers: bool = True,
    places: Collection[str] | None = None,
) -> Detection:
    """Fit on the fit part, set the threshold on what its prompts score where they are left out, and score the report
    part.

    answers: whether false blocks are looked for in answers too; places: those that have a region, None for all whose
    region holds enough. Raises RunFailed on NaN and on a full disk.
    """
    regions, own, trials, chosen = fit(prober, parts, skill, answers)
    if places is not None:
        wanted = [number for number, place in enumerate(regions.places) if place in places]
        regions, own = regions.of_places(wanted), own.of_places(wanted)
    part, most = parts.fit, parts.effort.answers if answers else 0
    common = COMMON if skill.alpha is None else skill.alpha
    thresholds = torch.full((len(regions.places),), common, dtype=torch.float64)
    if skill.alpha is None:
        thresholds = own.thresholds(part, skill)
        kept = worth_keeping(regions, parts, own.asked <= thresholds)
        if places is None and len(kept) < len(regions.places):
            regions, own = regions.of_places(kept), own.of_places(kept)
            thresholds = own.thresholds(part, skill)
    report = score_part(prober, parts.report, regions, most, REPORTED)
    plain = torch.tensor([query.format == PLAIN for query in part.asked])  # each prompt once, and no rendering
    levelled, count = regions.levelled(thresholds, common), len(thresholds)

    def inside(scores: Tensor) -> tuple[int, int]:
        return int((scores <= thresholds).any(1).sum()), len(scores)

    harmless = own.harmless(part)
    return Detection(
        levelled,
        common,
        tuple(trials),
        chosen,
        parts,
        {FIT: own.levelled(thresholds, common), REPORT: report.levelled(thresholds, common)},
        at_least(*inside(own.asked[plain])),
        at_most(*inside(harmless.others), count),
        at_most(*inside(harmless.near_misses), count),
        at_most(*inside(harmless.after_refusals), count),
        ANSWER_TOKENS if answers else 0,
        words_only(parts, skill),
        inside_prompts(prober, parts.report, levelled, common, parts.effort.answers),
        tuple(sorted({parts.places[query.format] for query in part.asked} - set(regions.places))),
    )


def rate_over(clusters: Sequence[Sequence[bool]]) -> Rate:
    """The rate of hits, with the wider of two 95 % intervals: the exact one of all, and by bootstrap over clusters."""
    hits, totals = [sum(each) for each in clusters], [len(each) for each in clusters]
    found = rate(sum(hits), sum(totals))
    if max(totals, default=1) == 1:
        return found
    low, high = ratio_interval(hits, totals, 0.95, 0)
    return replace(found, low=min(found.low, low), high=max(found.high, high))


def worth_keeping(regions: Regions, parts: RegionParts, inside: Tensor) -> list[int]:
    """The first place, and every other one whose region holds enough of what is asked there, by number.

    inside: (n, K) bool, of the fit part's forget queries.
    """
    places = [parts.places[query.format] for query in parts.fit.asked]
    kept = [0]
    for number, place in enumerate(regions.places[1:], 1):
        there = torch.tensor([each == place for each in places])
        if float(inside[there, number].double().mean()) >= LEAST_OF_PLACE:
            kept.append(number)
    return kept
