"""What the words of the prompts tell without a model: a detector that does no better reads words, not the skill."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from exporter.common.rates import Rate, rate
from exporter.methods.key_space.budget import thresholds_within
from exporter.methods.key_space.discriminant import Discriminant
from exporter.methods.key_space.left_out import Scale, folds_of, scores_left_out
from exporter.methods.key_space.region_fit import balanced
from exporter.prompts.packaged_skills import is_near_miss
from exporter.prompts.region_parts import RegionParts
from exporter.prompts.turns import FIT, REPORT
from exporter.recipes.settings import SkillSettings

GRAMS = (3, 4, 5)
"""Lengths of runs of characters, within a word and the spaces around it, that count beside whole words."""


def words_only(parts: RegionParts, skill: SkillSettings) -> Rate:
    """The share of the report part's forget prompts that words alone would block within the same budgets.

    The discriminant of tf-idf vectors (words and runs of characters) of plain prompts, fitted and held to the budgets
    on the same parts as the regions.
    """
    asked, answered = parts.plain("asked"), parts.plain("answered")
    queries = (*asked[FIT], *answered[FIT])
    forget = torch.arange(len(queries)) < len(asked[FIT])
    vectors = Vectors([query.prompt.text for query in queries])
    gram = torch.from_numpy((vectors.rows @ vectors.rows.T).toarray())
    # Rows have length 1, so this is a ridge of 1: what classifiers of text take.
    weights = balanced(queries, forget)
    fitted = Discriminant.of(gram, forget, weights, 1 / len(queries))
    direction = vectors.rows.T @ fitted.coefficients.numpy()

    def along(rows: csr_array) -> Tensor:
        return torch.from_numpy(rows @ direction)

    left_out = scores_left_out(fitted, folds_of(queries))
    scale = Scale.of(along(vectors.rows), left_out, forget, weights)
    own = scale.level(left_out)
    near = torch.tensor([is_near_miss(query.prompt) for query in queries])
    close = [(own[near, None], skill.max_near_miss)]
    threshold = float(thresholds_within(own[forget, None], own[~forget & ~near, None], close, skill.max_false_block))
    reported = 1 - (along(vectors.of([query.prompt.text for query in asked[REPORT]])) - scale.shift) / scale.unit
    return rate(int((reported <= threshold).sum()), len(asked[REPORT]))


class Vectors:
    """tf-idf vectors of texts, of length 1, over the terms of the texts that they are fitted on; `rows`: of these."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [terms(text) for text in texts]
        found = Counter(term for each in counts for term in each)
        self._column = {term: column for column, term in enumerate(sorted(found))}
        inside = np.array([found[term] for term in self._column])
        self._weights = 1 + np.log((1 + len(texts)) / (1 + inside))
        self.rows = self._vectors(counts)

    def of(self, texts: Sequence[str]) -> csr_array:
        """(texts, terms) of further texts."""
        return self._vectors([terms(text) for text in texts])

    def _vectors(self, counts: Sequence[Counter[str]]) -> csr_array:
        places, columns, values = [], [], []
        for place, each in enumerate(counts):
            known = [(self._column[term], count) for term, count in each.items() if term in self._column]
            own = np.array([(1 + np.log(count)) * self._weights[column] for column, count in known])
            places += [place] * len(known)
            columns += [column for column, _ in known]
            values += list(own / max(float(np.linalg.norm(own)), np.finfo(float).tiny))
        return csr_array((values, (places, columns)), shape=(len(counts), len(self._column)))


def terms(text: str) -> Counter[str]:
    """How often words and runs of characters are in a text."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    runs = [
        f" {word} "[start : start + size] for word in words for size in GRAMS for start in range(len(word) + 3 - size)
    ]
    return Counter([*words, *runs])
