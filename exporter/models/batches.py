"""Rows in batches of similar length, and in smaller ones where memory runs out: wherever a model runs on many rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from exporter.common.errors import RunFailed

Batch = tuple[list[int], Tensor]
"""Row numbers of queries and their last tokens' key vectors, (n, layers, d_ff) float32."""

T = TypeVar("T")

# Tokens of a batch, pads included, where --batch-size is auto: a CPU is fastest on few (its cache), while answers are
# written one token a row at a time and want many rows.
PROBE_TOKENS, ANSWER_TOKENS = 1024, 8192
AUTO_ROWS = 64


def batched(rows: Sequence[int], length: Callable[[int], int], tokens: int, batch_size: int | None) -> list[list[int]]:
    """Batches of rows of similar length, longest first, so that memory runs out at once or never.

    They depend on nothing but the rows, so that whoever resumes computes the same sums. batch_size: None for as many
    rows as `tokens` allow, pads included.
    """
    order = sorted(rows, key=lambda row: (-length(row), row))
    found = []
    while order:
        size = batch_size or max(1, min(AUTO_ROWS, tokens // max(1, length(order[0]))))
        found.append(order[:size])
        order = order[size:]
    return found


def run_batches(
    batches: Iterable[list[int]], run: Callable[[list[int]], T], what: str
) -> Iterator[tuple[list[int], T]]:
    """Each batch with what run(rows) returns for it. Where memory runs out, the batch and all later ones are taken in
    parts of half as many rows. Raises RunFailed where it does not suffice for one row."""
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
    """Whether an error says that memory ran out."""
    # PyTorch's CPU allocator has no exception class of its own.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
