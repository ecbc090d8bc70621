"""What every task has: items, batches that depend on nothing but them, and results for each item."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch

from exporter.common.errors import BadInput, RunFailed
from exporter.evaluation.items import Item
from exporter.evaluation.records import Result
from exporter.models.prober import AUTO_ROWS, out_of_memory
from exporter.models.subjects import Subject
from exporter.prompts.sources import Prompt


class Task(ABC):
    """Items of one source and how a model is judged on them.

    Attributes:
        kind: What is done, also the flag: "forget", "retain", "text", "choice", "gsm8k", "code", "qa".
        label: Label of the source.
        items: What is judged, (n,).
        ids: The token ids that each item is read as.
        found: Number of items before the sample was drawn.
    """

    kind: str
    tokens: ClassVar[int] = 1024
    """Tokens of a batch, pads included, where --batch-size is auto."""

    label: str
    items: Sequence[Item | Prompt]
    ids: Sequence[Sequence[int]]
    found: int

    @abstractmethod
    def run(self, subject: Subject, rows: Sequence[int]) -> list[Result]:
        """Results of the items with these numbers, one batch."""

    def batches(self, batch_size: int | None) -> list[list[int]]:
        """Item numbers by batch, of similar length, longest first: the same whenever the items are the same, so that
        whoever resumes computes the same sums."""
        return batched(range(len(self.items)), lambda row: len(self.ids[row]), self.tokens, batch_size)

    def check_length(self, context: int | None, flag: str) -> None:
        """Raises BadInput for an item that leaves no room for an answer in the model's context."""
        for item, ids in zip(self.items, self.ids, strict=True):
            if context is not None and len(ids) >= context:
                raise BadInput(
                    f"{flag} {item.source}: row {item.row} has {len(ids)} tokens, the model a context of {context}; "
                    "leave it out"
                )


def batched(rows: Sequence[int], length: Callable[[int], int], tokens: int, batch_size: int | None) -> list[list[int]]:
    order = sorted(rows, key=lambda row: (-length(row), row))
    found = []
    while order:
        size = batch_size or max(1, min(AUTO_ROWS, tokens // max(1, length(order[0]))))
        found.append(order[:size])
        order = order[size:]
    return found


def run_batch(task: Task, subject: Subject, rows: Sequence[int]) -> Iterator[tuple[Sequence[int], list[Result]]]:
    """Results of a batch, in halves where memory does not suffice for the whole."""
    try:
        results = task.run(subject, rows)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        if len(rows) == 1:
            raise RunFailed(f"{task.kind} {task.label}: out of memory with a single item") from error
        half = len(rows) // 2
        yield from run_batch(task, subject, rows[:half])
        yield from run_batch(task, subject, rows[half:])
    else:
        yield rows, results


def context_of(subject: Subject) -> int | None:
    """Number of positions that the model was made for, where its config says so."""
    length: Any = getattr(subject.model.config, "max_position_embeddings", None)
    return int(length) if length else None
