"""Fitting regions: layer and shrinkage by leaving out whole forms, then the directions on all of the fit part, and
the scores that every prompt of it has without itself, for the threshold."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.methods.key_space.discriminant import SHRINKAGE, Discriminant, Rows
from exporter.methods.key_space.left_out import (
    Names,
    Scale,
    around_names,
    fold_names,
    folds_of,
    group_names,
    scores_left_out,
    scores_of_all,
)
from exporter.methods.key_space.regions import ELSEWHERE, Regions
from exporter.prompts.formats import Query
from exporter.prompts.sources import Prompt
from exporter.prompts.turns import BEGUN, PLACES, PROMPT, REFUSED

SHRINKAGES = (0.1, 0.3, SHRINKAGE)
ANSWER = "answer"
"""The place inside an answer."""
PLACE_SHRINKAGE = 0.1
"""lambda of the directions of places, which lie far apart: less of it parts them further (SmolLM2, layer 20)."""
LOST = 0.01
"""Share of a place that may be outside its limit, so that nothing inside an answer is within."""
NEARER = 0.75
"""Where in the gap between the others, 0, and a place, 1, its limit lies."""
BEGUN_SHRINKAGE = SHRINKAGE
"""lambda at the end of a begun answer. With less, too many positions inside unseen answers are within the region
(SmolLM2, where 5 of 500 harmless answers of 32 tokens may have one: .45 and .42 of two authors' problems are blocked
behind a begun answer, .07 and .09 with lambda 0.1)."""


@dataclass(frozen=True)
class FitPart:
    """The queries of the fit part. forget: (n,) bool; places: of every query, ANSWER inside the model's own answers to
    harmless prompts."""

    queries: tuple[Query, ...]
    forget: Tensor
    places: tuple[str, ...]

    def at(self, place: str) -> Tensor:
        """Which rows stand at a place: (n,) bool."""
        return torch.tensor([each == place for each in self.places], dtype=torch.bool)

    def only(self, rows: Tensor) -> FitPart:
        """The queries of some rows, (n,) bool."""
        kept = rows.nonzero().flatten().tolist()
        queries, places = (tuple(each[row] for row in kept) for each in (self.queries, self.places))
        return FitPart(queries, self.forget[rows], places)

    @staticmethod
    def kind_of(place: str) -> frozenset[str]:
        """The places that one position cannot be told from this one by.

        The end of a message after a refusal is one of any message: that it was refused lies before it.
        """
        return frozenset((PROMPT, REFUSED) if place in (PROMPT, REFUSED) else (place,))

    def against_all(self, place: str) -> Tensor:
        """Rows from which the skill is known at a place: its forget rows, and the other side's of all places.

        The inside of answers is left to the direction of the place, unless it cannot be told from the place: a given
        beginning of an answer is nothing else. Where it can, these rows only cost (SmolLM2, word problems in other
        words blocked at 1 % of near misses: .91 without, .72 with 3,000 of them).
        """
        rows = ~self.forget | self.at(place)
        return rows if place == BEGUN else rows & ~self.at(ANSWER)

    def with_answers(self, queries: Sequence[Query]) -> FitPart:
        """The same with queries that end inside an answer."""
        forget = torch.cat([self.forget, torch.zeros(len(queries), dtype=torch.bool)])
        return FitPart((*self.queries, *queries), forget, (*self.places, *[ANSWER] * len(queries)))


@dataclass(frozen=True)
class LayerTrial:
    """One layer, judged inside the fit part by directions that had not seen the form (or fold) of a prompt.

    blocked: share of forget rows at the end of a message that are blocked, by form, where the budget's share of the
    other side is; mean: over forms; area: under the ROC curve, mean over forms; margin: between the means of both
    sides, in deviations of the other one.

    The layer and shrinkage with the greatest area are taken, of several the one with the widest margin. The share
    blocked hangs on the few rows of the other side that are nearest: of 1,000 rows it took layer 14 of SmolLM2, which
    blocks a tenth less of two other authors' prompts than layers 16, 21 and 22. Of eight draws of 500 rows the area
    took one of these three every time, the share blocked in five, the margin in six.
    """

    layer: int
    shrinkage: float
    blocked: Mapping[str, float]
    area: float
    margin: float

    def quality(self) -> tuple[float, float]:
        """What the best trial has most of."""
        return self.area, self.margin

    @property
    def mean(self) -> float:
        return sum(self.blocked.values()) / len(self.blocked)


def try_layer(
    keys: Tensor, part: FitPart, place: str, budget: float, layer: int, shrinkages: Sequence[float] = (SHRINKAGE,)
) -> list[LayerTrial]:
    """Judge one layer. keys: (n, d_ff) of the part's queries; budget: share of the other side that may be blocked."""
    chosen = part.against_all(place)
    queries = [query for query, mine in zip(part.queries, chosen.tolist(), strict=True) if mine]
    forget, rows = part.forget[chosen], Rows.of(keys[chosen])
    folds, weights = fold_names(queries, forget), balanced(queries, forget)
    groups = group_names(queries, folds)
    trials = []
    for shrinkage in shrinkages:
        scores = scores_left_out(Discriminant.of(rows.gram, forget, weights, shrinkage, rows.rows), folds, groups)
        threshold = torch.quantile(scores[~forget], budget)
        by_form: dict[str, list[int]] = defaultdict(list)
        for row in forget.nonzero().flatten().tolist():
            by_form[queries[row].prompt.form or ""].append(row)
        blocked = {form: float((scores[rows_] < threshold).double().mean()) for form, rows_ in sorted(by_form.items())}
        areas = [float((scores[rows_, None] < scores[~forget]).double().mean()) for rows_ in by_form.values()]
        margin = float((scores[~forget].mean() - scores[forget].mean()) / scores[~forget].std())
        trials.append(LayerTrial(layer, shrinkage, blocked, sum(areas) / len(areas), margin))
    return trials


def fit_regions(keys: Tensor, part: FitPart, layer: int, shrinkage: float) -> tuple[Regions, Tensor]:
    """The regions of one layer, one for each place of the forget rows, and the scores by place of every row, (n, K)
    float64, along directions fitted without its prompt and the text around it.

    keys: (n, d_ff) of the part's queries. The directions are of all rows, so what they say of new keys is a little
    better than these scores.
    """
    found, scores = [], []
    names = Names(folds_of(part.queries), around_names(part.queries))
    places = [place for place in PLACES if bool((part.at(place) & part.forget).any())]
    for place in places:
        chosen = part.against_all(place)
        queries = [query for query, mine in zip(part.queries, chosen.tolist(), strict=True) if mine]
        forget = part.forget[chosen]
        weights = balanced(queries, forget)
        rows = Rows.of(keys[chosen])
        ridge = BEGUN_SHRINKAGE if place == BEGUN else shrinkage
        fitted = Discriminant.of(rows.gram, forget, weights, ridge, rows.rows)
        direction = rows.direction(fitted.coefficients)
        # A prompt is asked at other places too.
        others = rows.products(keys[~chosen])
        left_out, beside = scores_of_all(fitted, names.of(chosen), others, names.of(~chosen))
        scale = Scale.of(keys[chosen].double() @ direction, left_out, forget, weights)
        found.append((direction / scale.unit, scale.shift / scale.unit))
        own = left_out.new_empty(len(keys))
        own[chosen], own[~chosen] = scale.level(left_out), scale.level(beside)
        scores.append(own)
    skill, shift_ = zip(*found, strict=True)
    kinds = [part.kind_of(place) for place in places]
    of_kinds = {kind: fit_place(keys, part, kind) for kind in dict.fromkeys(kinds)}
    place_, least_, there = zip(*(of_kinds[kind] for kind in kinds), strict=True)
    apart = torch.stack(scores, 1)
    regions = Regions(
        layer,
        tuple(places),
        torch.stack(skill).float(),
        torch.tensor(shift_, dtype=torch.float64),
        torch.stack(place_).float(),
        torch.tensor(least_, dtype=torch.float64),
    )
    return regions, torch.where(torch.stack(there, 1), apart, apart.clamp(min=ELSEWHERE))


def fit_place(keys: Tensor, part: FitPart, kind: frozenset[str]) -> tuple[Tensor, float, Tensor]:
    """The direction (d,) float64 that tells the keys of one kind of place from all others, and its limit; 0 for all
    where there is no other place. And which rows are within it by a direction that had not seen their fold, (n,) bool.

    The limit is of keys by directions that had not seen their fold: in the gap between the others and all but LOST of
    the place, nearer to the place; where they overlap, what LOST of the place are below. Ends of messages lie close
    together, and the inside of answers has a long tail: one position inside one answer was beyond the middle of the
    gap (SmolLM2), and held the threshold of a whole export, so that 43 % of the problems were blocked instead of 71 %.
    """
    side = torch.tensor([place in kind for place in part.places])
    if bool(side.all()):
        return torch.zeros(keys.shape[1], dtype=torch.float64), 0.0, side
    rows, weights = Rows.of(keys), torch.ones(len(keys)).double()
    fitted = Discriminant.of(rows.gram, side, weights, PLACE_SHRINKAGE, rows.rows)
    direction = rows.direction(fitted.coefficients).float().double()
    left_out = 1 - scores_left_out(fitted, folds_of(part.queries))
    along = keys.double() @ direction
    one, zero = float(along[side].mean()), float(along[~side].mean())
    least, greatest = float(left_out[side].quantile(LOST)), float(left_out[~side].max())
    limit = min(least, greatest + NEARER * (least - greatest))
    return direction, zero + (one - zero) * limit, left_out >= limit


def balanced(queries: Sequence[Query], forget: Tensor) -> Tensor:
    """Weights (n,) float64, with mean 1 on each side: a group of n queries of one source, and form or kind, counts as
    the root of n, so that 400 rows of one data set do not drown 40 varied prompts.

    Groups of one language are too small: they cost a tenth of what is blocked (SmolLM2, packaged maths, layer 21).
    """

    def group(prompt: Prompt) -> tuple[str, str]:
        return prompt.source, prompt.form or prompt.kind or ""

    names = [(group(query.prompt), side) for query, side in zip(queries, forget.tolist(), strict=True)]
    sizes = Counter(names)
    weights = torch.tensor([sizes[name] ** -0.5 for name in names], dtype=torch.float64)
    for side in (forget, ~forget):
        weights[side] /= weights[side].mean()
    return weights
