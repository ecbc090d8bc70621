"""Fitting regions: layer and shrinkage by leaving out whole forms, then the directions on all of the fit part, and
the scores that every prompt of it has without itself, for the threshold."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from exporter.methods.key_space.discriminant import SHRINKAGE, Discriminant, Rows
from exporter.methods.key_space.regions import ELSEWHERE, Regions
from exporter.prompts.formats import Query
from exporter.prompts.renderings import GROUPS, group_of
from exporter.prompts.sources import Prompt
from exporter.prompts.turns import AFTER_ANSWER, BEGUN, INSISTING, PLACES, PROMPT, REFUSED

SHRINKAGES = (0.1, 0.3, SHRINKAGE)
ANSWER = "answer"
"""The place inside an answer."""
PLACE_SHRINKAGE = 0.1
"""lambda of the directions of places, which lie far apart: less of it parts them further (SmolLM2, layer 20)."""
FOLDS = 20
"""Parts of the prompts that are left out in turn. Scores are brought into the scale of the directions of all rows by
their left-out means, which lie too close together the more is left out: with 5 folds the bound on false blocks was too
low in 10 of 40 draws of 500 and 100 rows of 1,000 dimensions, with 20 in 4, as it should be."""
GROUP = "group"
LEAST_APART = 1e-3
"""Least distance of the left-out means of both sides, where rows that were fitted on have 1."""
LOST = 0.01
"""Share of a place that may be outside its limit, so that nothing inside an answer is within."""


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
        scores = scores_left_out(Discriminant.of(rows.gram, forget, weights, shrinkage), folds, groups)
        threshold = torch.quantile(scores[~forget], budget)
        by_form: dict[str, list[int]] = defaultdict(list)
        for row in forget.nonzero().flatten().tolist():
            by_form[queries[row].prompt.form or ""].append(row)
        blocked = {form: float((scores[rows_] < threshold).double().mean()) for form, rows_ in sorted(by_form.items())}
        areas = [float((scores[rows_, None] < scores[~forget]).double().mean()) for rows_ in by_form.values()]
        margin = float((scores[~forget].mean() - scores[forget].mean()) / scores[~forget].std())
        trials.append(LayerTrial(layer, shrinkage, blocked, sum(areas) / len(areas), margin))
    return trials


def scores_left_out(fitted: Discriminant, folds: Sequence[str], groups: Sequence[str] | None = None) -> Tensor:
    """Scores as `Regions.scores` gives them, of each row by a direction fitted without its fold, nor any of its group
    (see `group_names`): (n,) float64."""
    return scores_of_all(fitted, Names(folds, groups or folds))[0]


class Names(NamedTuple):
    """Of each query, what it is left out with: its fold of prompts, and a group of another kind."""

    folds: Sequence[str]
    groups: Sequence[str]

    def of(self, rows: Tensor) -> Names:
        """Of some of the queries, (n,) bool."""
        return Names(*([name for name, mine in zip(each, rows.tolist(), strict=True) if mine] for each in self))


def scores_of_all(
    fitted: Discriminant, names: Names, others: Tensor | None = None, theirs: Names | None = None
) -> tuple[Tensor, Tensor]:
    """The same of the rows, (n,), and of other keys, (m,), that are left out with them.

    others: (n, m), the products of the rows with them; theirs: what each of them is left out with.
    """
    both = list(zip(*names, strict=True))
    beside = list(zip(*theirs, strict=True)) if theirs is not None else []
    scores, more = (torch.zeros(len(each), dtype=torch.float64) for each in (both, beside))
    for fold, group in sorted({*both, *beside}):
        held, mine = (
            torch.tensor([each == (fold, group) for each in all_], dtype=torch.bool) for all_ in (both, beside)
        )
        unseen = torch.tensor([one == fold or other == group for one, other in both], dtype=torch.bool)
        scores[held], found = fitted.scores_without(unseen, held, None if others is None else others[:, mine])
        if found is not None:
            more[mine] = found
    return scores, more


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
        fitted = Discriminant.of(rows.gram, forget, weights, shrinkage)
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


class Scale(NamedTuple):
    """Unit and shift with which a new key scores 1 - (coordinate - shift) / unit, and near and far, the means of the
    left-out scores of forget rows and of others, which are 0 and 1 in that scale.

    The rows that a direction was fitted on lie further apart along it than new ones; left-out scores do not.
    """

    unit: float
    shift: float
    near: float
    far: float

    @classmethod
    def of(cls, along: Tensor, left_out: Tensor, forget: Tensor, weights: Tensor) -> Scale:
        """along: (n,) coordinates of the rows that the direction was fitted on; left_out: their scores."""
        one, zero = (float(along[side] @ weights[side] / weights[side].sum()) for side in (forget, ~forget))
        near, far = (float(left_out[side] @ weights[side] / weights[side].sum()) for side in (forget, ~forget))
        # Where the left-out means do not lie apart, the rows are far from one another, and the budgets leave nothing.
        far = max(far, near + LEAST_APART)
        # Left-out scores are 1 - (coordinate - zero) / (one - zero).
        return cls((one - zero) * (far - near), zero + (1 - far) * (one - zero), near, far)

    def level(self, left_out: Tensor) -> Tensor:
        """Left-out scores in this scale."""
        return (left_out - self.near) / (self.far - self.near)


def fit_place(keys: Tensor, part: FitPart, kind: frozenset[str]) -> tuple[Tensor, float, Tensor]:
    """The direction (d,) float64 that tells the keys of one kind of place from all others, and its limit; 0 for all
    where there is no other place. And which rows are within it by a direction that had not seen their fold, (n,) bool.

    The limit is of keys by directions that had not seen their fold: the middle of the gap between both sides; where
    they overlap, what LOST of the place are below.
    """
    side = torch.tensor([place in kind for place in part.places])
    if bool(side.all()):
        return torch.zeros(keys.shape[1], dtype=torch.float64), 0.0, side
    rows, weights = Rows.of(keys), torch.ones(len(keys)).double()
    fitted = Discriminant.of(rows.gram, side, weights, PLACE_SHRINKAGE)
    direction = rows.direction(fitted.coefficients).float().double()
    left_out = 1 - scores_left_out(fitted, folds_of(part.queries))
    least, greatest = float(left_out[side].quantile(LOST)), float(left_out[~side].max())
    along = keys.double() @ direction
    one, zero = float(along[side].mean()), float(along[~side].mean())
    limit = min(least, (least + greatest) / 2)
    return direction, zero + (one - zero) * limit, left_out >= limit


def fold_names(queries: Sequence[Query], forget: Tensor) -> list[str]:
    """What is left out together with each query: its form; where it has none, or all forget queries have the same, one
    of FOLDS parts of the prompts."""
    forms = {query.prompt.form for query, mine in zip(queries, forget.tolist(), strict=True) if mine}
    own = zip(queries, folds_of(queries), strict=True)
    return [(len(forms) > 1 and query.prompt.form) or fold for query, fold in own]


def group_names(queries: Sequence[Query], folds: Sequence[str]) -> list[str]:
    """What else no direction that scores a query has seen: of a rendering, or a prompt that has some, its group of
    prompts, since all renderings of one say the same; of others nothing beyond their fold."""
    own = zip(folds_of(queries), folds, strict=True)
    return [group if group.startswith(GROUP) else fold for group, fold in own]


def folds_of(queries: Sequence[Query]) -> list[str]:
    """The prompts that each query is left out with: one in FOLDS, or of prompts that have renderings, their group."""
    rendered = {query.prompt.given for query in queries if query.prompt.original}
    return [
        f"{GROUP} {group_of(prompt)}" if prompt.given in rendered else f"fold {int(prompt.sha256[:8], 16) % FOLDS}"
        for prompt in (query.prompt for query in queries)
    ]


def around_names(queries: Sequence[Query]) -> list[str]:
    """What else no direction that scores a query has seen: one in GROUPS of the texts that stand around prompts in its
    kind of turn; where there is but one, as in a plain message, nothing beyond its prompt's fold.

    A phrase that insists stands behind a refusal and, on the other side, behind an answer.
    """
    around = [(INSISTING if query.format == AFTER_ANSWER else query.format, query.variant) for query in queries]
    many = {format_ for format_, count in Counter(format_ for format_, _ in set(around)).items() if count > 1}
    return [
        f"{format_} {int(hashlib.sha256(f'{variant}'.encode()).hexdigest()[:8], 16) % GROUPS}"
        if format_ in many
        else fold
        for (format_, variant), fold in zip(around, folds_of(queries), strict=True)
    ]


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
