"""Leaving out: what directions say of keys that they were not fitted on, and with what each of them is left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from exporter.methods.key_space.discriminant import Discriminant
from exporter.prompts.formats import Query
from exporter.prompts.renderings import GROUPS, group_of
from exporter.prompts.turns import AFTER_ANSWER, INSISTING

FOLDS = 20
"""Parts of the prompts that are left out in turn: with 5 the bound on false blocks was too low in 10 of 40 draws of
500 and 100 rows of 1,000 dimensions, with 20 in 4, as it should be."""
GROUP = "group"
LEAST_APART = 1e-3
"""Least distance of the left-out means of both sides, where rows that were fitted on have 1."""


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

    def compared(self) -> Callable[[str, str], tuple[Tensor, Tensor]]:
        """equal(fold, group): which queries have that fold, and which that group, both (n,) bool."""
        folds, groups = (numpy.array(each, dtype=object) for each in self)
        return lambda fold, group: (torch.from_numpy(folds == fold), torch.from_numpy(groups == group))


def scores_of_all(
    fitted: Discriminant, names: Names, others: Tensor | None = None, theirs: Names | None = None
) -> tuple[Tensor, Tensor]:
    """Scores of each row, (n,), and of other keys, (m,), by directions fitted without what they are left out with.

    others: (m, n), their products with the rows; theirs: what each of them is left out with.
    """
    theirs = Names([], []) if theirs is None else theirs
    own, beside = names.compared(), theirs.compared()
    scores, more = (torch.zeros(len(each.folds), dtype=torch.float64) for each in (names, theirs))
    for fold, group in sorted({*zip(*names, strict=True), *zip(*theirs, strict=True)}):
        (folds, groups), (their_folds, their_groups) = own(fold, group), beside(fold, group)
        held, mine = folds & groups, their_folds & their_groups
        scores[held], found = fitted.scores_without(folds | groups, held, None if others is None else others[mine])
        if found is not None:
            more[mine] = found
    return scores, more


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
