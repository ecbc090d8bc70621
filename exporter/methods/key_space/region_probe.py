"""Regions by way of a prober: the keys that they are fitted on and choose the layer by, and scores of whole parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from exporter.common.rates import Rate, rate
from exporter.methods.key_space.region_fit import ANSWER, SHRINKAGES, FitPart, LayerTrial, fit_regions, try_layer
from exporter.methods.key_space.region_scores import PlaceScores
from exporter.methods.key_space.regions import Regions
from exporter.methods.key_space.spool import KeySpool
from exporter.models.prober import ANSWER_WORK, KeyProber, Prober, check_finite
from exporter.prompts.formats import PLAIN, Query
from exporter.prompts.region_parts import Part, RegionParts
from exporter.prompts.turns import PROMPT
from exporter.recipes.settings import SkillSettings

T = TypeVar("T")

ANSWER_TOKENS = 64
TRIED, FITTED, REPORTED = "fit part: every layer", "fit part", "report part"
PLACED, INNER, LOOKED_AT = "fit part: answers", "fit part: inside answers", "fit part: other answers"
DIRECTIONS = "fitting directions"
"""Stages of a fit, as people see them."""
LIKELY_LAYER = 0.75
"""Share of the layers up to the one that is chosen, more or less."""


class Fitted(NamedTuple):
    """Regions; scores of the fit part, each along directions that had not seen it, but for those of answers, which are
    along the final ones; every layer's trial, and that of the chosen layer and shrinkage."""

    regions: Regions
    scores: PlaceScores
    trials: list[LayerTrial]
    chosen: LayerTrial


def fit(prober: KeyProber, parts: RegionParts, skill: SkillSettings, answers: bool) -> Fitted:
    """Fit on the fit part, at the layer that is given, or the best. answers: whether those to harmless prompts have
    scores."""
    part, effort = parts.fit, parts.effort
    queries = (*part.asked, *part.answered, *part.after)
    forget = torch.arange(len(queries)) < len(part.asked)
    fitted = FitPart(queries, forget, tuple(map(parts.places.__getitem__, (query.format for query in queries))))
    budget, given = skill.max_false_block, skill.layer_number(prober.layers)
    if given is None:
        tried = torch.zeros(len(queries), dtype=torch.bool)
        tried[tried_rows(parts)] = True
        trials, layer, theirs = every_layer(prober, fitted.only(tried), budget)
        rest = [query for query, seen in zip(queries, tried.tolist(), strict=True) if not seen]
        keys = theirs.new_empty(len(queries), theirs.shape[1])
        keys[tried], keys[~tried] = theirs, last_keys(prober, rest, layer, FITTED)
    else:
        layer, keys = given, last_keys(prober, queries, given, FITTED)
    with prober.progress.stage(DIRECTIONS, 0, f"layer {layer}"):
        shrunk = try_layer(keys, fitted, PROMPT, budget, layer, SHRINKAGES)
    if given is not None:
        trials = shrunk[-1:]
    chosen = max(shrunk, key=LayerTrial.quality)
    placed, rows = answered_rows(parts, answers)
    inner = inside_answers(prober, [part.answered[row] for row in placed], effort.placed[1])
    keys = torch.cat([keys, last_keys(prober, inner, layer, INNER)])
    with prober.progress.stage(DIRECTIONS, 0, "of every place"):
        regions, scores = fit_regions(keys, fitted.with_answers(inner), layer, chosen.shrinkage)
    least = answer_scores(prober, part, rows, regions, LOOKED_AT)
    asked, answered, after = scores[: len(queries)].split([len(side) for side in vars(part).values()])
    return Fitted(regions, PlaceScores(asked, answered, after, rows, least), trials, chosen)


def every_layer(prober: KeyProber, part: FitPart, budget: float) -> tuple[list[LayerTrial], int, Tensor]:
    """Every layer's trial, the number of the best layer, and its keys (n, d_ff) of the part's queries."""
    with KeySpool() as spool:
        for _ in spool.keep(prober.last_token_keys(part.queries, TRIED)):
            pass
        trials = [
            trial
            for layer in range(prober.layers)
            for trial in try_layer(check_finite(spool.layer(layer), FITTED), part, PROMPT, budget, layer)
        ]
        layer = max(trials, key=LayerTrial.quality).layer
        return trials, layer, spool.layer(layer)


def tried_rows(parts: RegionParts) -> list[int]:
    """Which queries of the fit part, in the order of its sides, are run through every layer: so many of each side."""
    sides = parts.fit.asked, (*parts.fit.answered, *parts.fit.after)
    found: list[int] = []
    for begin, side in zip((0, len(sides[0])), sides, strict=True):
        there = [begin + row for row, query in enumerate(side) if parts.places[query.format] == PROMPT]
        found += spread(there, parts.effort.tried // 2)
    return found


def answered_rows(parts: RegionParts, answers: bool) -> tuple[list[int], list[int]]:
    """Which plain queries of the fit part that are to be answered are answered: those whose answers the places are
    told from, and those whose answers are looked at. Nothing is fitted on the latter."""
    plain = plain_rows(parts.fit)
    placed = spread(plain, min(parts.effort.placed[0], len(plain) // 2))
    return placed, spread(sorted({*plain} - {*placed}), parts.effort.answers if answers else 0)


def expected(prober: Prober, parts: RegionParts, skill: SkillSettings) -> list[tuple[str, float]]:
    """The stages of `fit` and `score_part`, with their work in tokens of a forward."""
    part, given = parts.fit, skill.layer_number(prober.layers)
    queries = [*part.asked, *part.answered, *part.after]
    share = LIKELY_LAYER if given is None else (given + 1) / prober.layers
    stages = []
    if given is None:
        tried = {*tried_rows(parts)}
        stages.append((TRIED, prober.work([queries[row] for row in tried], 1.0)))
        queries = [query for row, query in enumerate(queries) if row not in tried]
    stages.append((FITTED, prober.work(queries, share)))
    placed, looked_at = answered_rows(parts, True)
    longest = ANSWER_TOKENS * ANSWER_WORK

    def answering(rows: Sequence[int], queries: Sequence[Query]) -> float:
        return sum(len(queries[row].ids) + longest for row in rows)

    stages.append((PLACED, answering(placed, part.answered)))
    stages.append((INNER, share * sum(len(part.answered[row].ids) + ANSWER_TOKENS for row in placed)))
    stages.append((LOOKED_AT, answering(looked_at, part.answered)))
    report, most = parts.report, parts.effort.answers
    rows = spread(plain_rows(report), most)
    stages.append((f"{REPORTED}: answers", answering(rows, report.answered)))
    stages += [(f"{REPORTED}: {name}", prober.work(side, share)) for name, side in vars(report).items()]
    return stages


def plain_rows(part: Part) -> list[int]:
    """Which queries that are to be answered are plain messages."""
    return [row for row, query in enumerate(part.answered) if query.format == PLAIN]


def inside_answers(prober: KeyProber, queries: Sequence[Query], positions: int) -> list[Query]:
    """Queries that end at positions inside the model's own answers to some others."""
    answers = prober.answers(queries, ANSWER_TOKENS, PLACED)
    inner = [
        Query(query.prompt, ANSWER, (*query.ids, *answer[:length]))
        for query, answer in zip(queries, answers, strict=True)
        for length in range(1, len(answer) + 1)
    ]
    return spread(inner, positions)


def inside_prompts(prober: KeyProber, part: Part, regions: Regions, threshold: float, most: int) -> Rate:
    """The share of positions before the last one of some harmless plain queries that are within the threshold."""
    queries = [part.answered[row] for row in spread(plain_rows(part), most)]
    begun = {query.ids[:length]: query.prompt for query in queries for length in range(1, len(query.ids))}
    inner = [Query(prompt, PLAIN, ids) for ids, prompt in begun.items()]
    scores = region_scores(prober, inner, regions, "report part: inside prompts")
    return rate(int((scores <= threshold).sum()), len(scores))


def last_keys(prober: KeyProber, queries: Sequence[Query], layer: int, what: str) -> Tensor:
    """Keys of one layer at the last tokens, (n, d_ff) float32, in the order of the queries."""
    order: list[int] = []
    found: list[Tensor] = []
    for rows, keys in prober.last_token_keys(queries, what, layer):
        order += rows
        found.append(keys[:, 0])
    if not found:  # no kind of turn, or no answer, to look at
        return torch.zeros(0, prober.key_size)
    return check_finite(torch.cat(found)[torch.tensor(order).argsort()], what)


def score_part(prober: KeyProber, part: Part, regions: Regions, most: int, what: str) -> PlaceScores:
    """Scores of a part by place; of the answers to harmless plain queries, so many at most."""
    rows = spread(plain_rows(part), most)
    answers = answer_scores(prober, part, rows, regions, f"{what}: answers")
    asked, answered, after = (
        regions.scores_by_place(last_keys(prober, side, regions.layer, f"{what}: {name}"))
        for name, side in vars(part).items()
    )
    return PlaceScores(asked, answered, after, rows, answers)


def answer_scores(prober: KeyProber, part: Part, rows: Sequence[int], regions: Regions, what: str) -> Tensor:
    """The least score by place over the positions of the answers to some harmless queries, by row: (m, K)."""
    queries = [part.answered[row] for row in rows]
    _, least = prober.score_answers(queries, regions.single(), ANSWER_TOKENS, what)
    return least[:, :, regions.layer].T


def region_scores(prober: KeyProber, queries: Sequence[Query], regions: Regions, what: str) -> Tensor:
    """Scores of the last tokens, (n,) float64. Raises RunFailed on NaN."""
    return regions.scores(last_keys(prober, queries, regions.layer, what))


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread."""
    count = min(most, len(items))
    return [items[place * len(items) // count] for place in range(count)]
