"""Prefixes that many queries share (system prompt, earlier turns, template header): run once, kept as a cache."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import NamedTuple

import numpy
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from exporter.models.hooks import LastLayerReached, key_hooks
from exporter.prompts.formats import Query

GROUP_COST = 128
"""Tokens that a group has to save, since it is a forward and batches of its own; with 128 an export of SmolLM2 has the
least work (447,000 tokens with 32, 437,000 with 128, where a forward costs 30)."""


def shared_prefixes(ids: Sequence[tuple[int, ...]], least: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Groups of rows as (length of the prefix that they share, 0 for none; rows), with the fewest tokens to run.

    least: of each row, the number of leading tokens that a prefix has to be shorter than.
    """
    order = sorted(range(len(ids)), key=lambda row: ids[row])
    allowed = numpy.array([least[row] - 1 for row in order], dtype=numpy.int64)
    # Of each row in this order, what it shares with the one before it: neighbours share the most.
    common = numpy.array([0, *(common_length(ids[a], ids[b]) for a, b in pairwise(order))])
    saved = numpy.zeros(len(order) + 1)
    begins = [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        # Prefixes of the rows from each start to this end, by start, the last row alone first.
        limits = numpy.minimum(allowed[:end], numpy.append(common[1:end], allowed[end - 1]))
        shared = numpy.minimum.accumulate(limits[::-1])
        gained = numpy.arange(end) * shared - GROUP_COST
        gained[0] = 0
        totals = saved[:end][::-1] + gained
        best = int(totals.argmax())
        saved[end], begins[end] = totals[best], end - 1 - best
    groups: list[tuple[int, list[int]]] = []
    alone: list[int] = []
    end = len(order)
    while end:
        start = begins[end]
        if end - start > 1:
            groups.append((int(min(allowed[start:end].min(), common[start + 1 : end].min())), order[start:end]))
        else:
            alone.append(order[start])
        end = start
    return [*([(0, alone[::-1])] if alone else []), *groups[::-1]]


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of leading ids that both have in common."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class Layout(NamedTuple):
    """How queries are run for the keys of their last tokens: one line for each that begins no other (`longest`), with
    the rows of those that it has (`groups`); groups of lines that share a prefix, and the length of it by line."""

    groups: list[list[int]]
    longest: list[Query]
    shared: list[tuple[int, list[int]]]
    length_of: dict[int, int]

    @classmethod
    def of(cls, queries: Sequence[Query]) -> Layout:
        """The layout with the fewest tokens to run."""
        begun = begun_by(queries)
        groups, longest = list(begun.values()), [queries[row] for row in begun]
        shared = shared_prefixes(
            [query.ids for query in longest], [min(len(queries[row].ids) for row in rows) for rows in groups]
        )
        return cls(groups, longest, shared, {place: length for length, places in shared for place in places})


def begun_by(queries: Sequence[Query]) -> dict[int, list[int]]:
    """Rows of queries by the row of a query that all of them begin; the others' keys are among its own."""
    order = sorted(range(len(queries)), key=lambda row: queries[row].ids)
    found: dict[int, list[int]] = {}
    own = None
    for row in reversed(order):  # those that begin with a query follow it
        ids = queries[row].ids
        if own is None or queries[own].ids[: len(ids)] != ids:
            own = row
        found.setdefault(own, []).append(row)
    return found


def last_tokens(
    queries: Sequence[Query], groups: Sequence[Sequence[int]], length: int = 0
) -> tuple[list[int], list[int], list[int]]:
    """Lines and columns of the last tokens of queries in a batch padded on the right, and the queries' rows.

    groups: of each line, rows of the queries that it has (see `begun_by`); length: leading tokens that are left out.
    """
    found = [(line, len(queries[row].ids) - length - 1, row) for line, group in enumerate(groups) for row in group]
    lines, columns, rows = (list(each) for each in zip(*found, strict=True))
    return lines, columns, rows


class PrefixCache:
    """Keys and values of the attention over the prefix run last.

    stop_after: no later layers are needed.
    """

    def __init__(self, model: PreTrainedModel, stop_after: int) -> None:
        self._model, self._stop_after = model, stop_after
        self._ids: tuple[int, ...] = ()
        self._cache: DynamicCache | None = None

    def of(self, ids: tuple[int, ...], rows: int) -> DynamicCache:
        """A cache to go on from, for so many rows that begin with the same ids."""
        if ids != self._ids or self._cache is None:
            cache = DynamicCache(config=self._model.config)
            inputs = torch.tensor([ids], device=self._model.device)
            try:
                with key_hooks(self._model, ignored, stop_after=self._stop_after), torch.inference_mode():
                    self._model.base_model(input_ids=inputs, past_key_values=cache, use_cache=True)
            except LastLayerReached:
                pass
            self._ids, self._cache = ids, cache
        found = deepcopy(self._cache)
        found.batch_repeat_interleave(rows)
        return found


def ignored(layer: int, key: Tensor) -> None:
    """Takes no keys."""
