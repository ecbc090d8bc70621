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
from exporter.models.prober import KeyProber, check_finite
from exporter.prompts.formats import PLAIN, Query
from exporter.prompts.region_parts import Part, RegionParts
from exporter.prompts.turns import PROMPT
from exporter.recipes.settings import SkillSettings

T = TypeVar("T")

ANSWER_TOKENS = 64


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
        for side in (forget, ~forget):
            tried[spread((side & fitted.at(PROMPT)).nonzero().flatten().tolist(), effort.tried // 2)] = True
        trials, layer, theirs = every_layer(prober, fitted.only(tried), budget)
        rest = [query for query, seen in zip(queries, tried.tolist(), strict=True) if not seen]
        keys = theirs.new_empty(len(queries), theirs.shape[1])
        keys[tried], keys[~tried] = theirs, last_keys(prober, rest, layer, "fit part")
    else:
        layer, keys = given, last_keys(prober, queries, given, "fit part")
    shrunk = try_layer(keys, fitted, PROMPT, budget, layer, SHRINKAGES)
    if given is not None:
        trials = shrunk[-1:]
    chosen = max(shrunk, key=LayerTrial.quality)
    plain = plain_rows(part)
    placed = spread(plain, min(effort.placed[0], len(plain) // 2))
    inner = inside_answers(prober, [part.answered[row] for row in placed], effort.placed[1])
    keys = torch.cat([keys, last_keys(prober, inner, layer, "fit part: answers")])
    regions, scores = fit_regions(keys, fitted.with_answers(inner), layer, chosen.shrinkage)
    # Nothing was fitted on the answers that are looked at.
    rows = spread(sorted({*plain} - {*placed}), effort.answers if answers else 0)
    least = answer_scores(prober, part, rows, regions, "fit part: answers")
    asked, answered, after = scores[: len(queries)].split([len(side) for side in vars(part).values()])
    return Fitted(regions, PlaceScores(asked, answered, after, rows, least), trials, chosen)


def every_layer(prober: KeyProber, part: FitPart, budget: float) -> tuple[list[LayerTrial], int, Tensor]:
    """Every layer's trial, the number of the best layer, and its keys (n, d_ff) of the part's queries."""
    with KeySpool() as spool:
        for _ in spool.keep(prober.last_token_keys(part.queries, "fit part: every layer")):
            pass
        trials = [
            trial
            for layer in range(prober.layers)
            for trial in try_layer(check_finite(spool.layer(layer), "fit part"), part, PROMPT, budget, layer)
        ]
        layer = max(trials, key=LayerTrial.quality).layer
        return trials, layer, spool.layer(layer)


def plain_rows(part: Part) -> list[int]:
    """Which queries that are to be answered are plain messages."""
    return [row for row, query in enumerate(part.answered) if query.format == PLAIN]


def inside_answers(prober: KeyProber, queries: Sequence[Query], positions: int) -> list[Query]:
    """Queries that end at positions inside the model's own answers to some others."""
    answers = prober.answers(queries, ANSWER_TOKENS, "fit part: answers")
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
