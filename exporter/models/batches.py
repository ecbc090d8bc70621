"""Batches of rows of similar length, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy
import torch
from torch import Tensor

from exporter.common.errors import RunFailed

Batch = tuple[list[int], Tensor]
"""Row numbers of queries, and the key vectors of their last tokens, (n, layers, d_ff) float32."""

T = TypeVar("T")

# Tokens of a batch, pads included, with --batch-size auto: a CPU is fastest on few (its cache), while answers are
# generated one token per row at a time and need many rows.
PROBE_TOKENS, ANSWER_TOKENS = 1024, 8192
AUTO_ROWS = 64
BATCH_COST = 64
"""What a forward costs beside its tokens, in tokens: about 30 on a CPU (SmolLM2), supposedly more on a GPU."""


def batched(
    rows: Sequence[int], length: Callable[[int], int], tokens: int, batch_size: int | None, new_tokens: int = 0
) -> list[list[int]]:
    """Batches of rows of similar length, longest first, so that memory runs out early or never; of all such, those
    with the least work: tokens, pads included, and BATCH_COST for each forward.

    They depend on the rows alone, so that a resumed run computes the same sums. batch_size: rows of a batch at most,
    None for as many as `tokens` allow, pads included; new_tokens: forwards of a batch beside the first.
    """
    order = sorted(rows, key=lambda row: (-length(row), row))
    lengths = numpy.array([length(row) for row in order], dtype=numpy.int64)
    most, cost = batch_size or AUTO_ROWS, BATCH_COST * (1 + new_tokens)
    work, begins = numpy.zeros(len(order) + 1), [0]
    for end in range(1, len(order) + 1):
        starts = numpy.arange(max(0, end - most), end)
        sizes = (end - starts) * lengths[starts]
        if batch_size is None:
            sizes = numpy.where((sizes <= tokens) | (starts == end - 1), sizes, numpy.inf)
        totals = work[starts] + sizes + cost
        best = int(totals.argmin())
        work[end] = totals[best]
        begins.append(int(starts[best]))
    found = []
    end = len(order)
    while end:
        found.append(order[begins[end] : end])
        end = begins[end]
    return found[::-1]


def run_batches(
    batches: Iterable[list[int]], run: Callable[[list[int]], T], what: str
) -> Iterator[tuple[list[int], T]]:
    """Each batch with the result of run(rows). When memory runs out, this batch and all later ones are split into
    parts of half as many rows. Raises RunFailed if a single row does not fit."""
    limit = None
    for batch in batches:
        while batch:
            rows = batch[:limit]
            try:
                result = run(rows)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if len(rows) == 1:
                    raise RunFailed(f"{what}: out of memory with a batch of one") from error
                limit = len(rows) // 2
                continue
            yield rows, result
            batch = batch[len(rows) :]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    # PyTorch's CPU allocator has no exception class.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
