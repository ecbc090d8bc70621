"""What every task has: items, batches that depend on nothing else, and a result for each item."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from exporter.common.errors import BadInput
from exporter.evaluation.items import Item
from exporter.evaluation.records import Result
from exporter.models.batches import PROBE_TOKENS, batched, run_batches
from exporter.models.loading import LoadedModel
from exporter.prompts.sources import Prompt


class Task(ABC):
    """Items of one source and how a model is judged on them.

    Attributes:
        kind: Which task it is, also the flag: "forget", "retain", "text", "choice", "gsm8k", "code", "qa".
        label: Label of the source.
        items: What is judged, (n,).
        ids: Token ids of each item.
        found: Number of items before the sample was drawn.
    """

    kind: str
    tokens: ClassVar[int] = PROBE_TOKENS
    """Tokens of a batch, pads included, where --batch-size is auto."""
    new_tokens: ClassVar[int] = 0
    """Tokens of an answer, at most."""

    label: str
    items: Sequence[Item | Prompt]
    ids: Sequence[Sequence[int]]
    found: int

    @abstractmethod
    def run(self, loaded: LoadedModel, rows: Sequence[int]) -> list[Result]:
        """Results of the items with these numbers, one batch."""

    def batches(self, batch_size: int | None) -> list[list[int]]:
        """Item numbers by batch: see `batched`."""
        lengths = [len(ids) for ids in self.ids]
        return batched(range(len(lengths)), lengths.__getitem__, self.tokens, batch_size, self.new_tokens)

    def results(self, loaded: LoadedModel, batches: Iterable[list[int]]) -> Iterator[tuple[list[int], list[Result]]]:
        """Batches with their results; batches and errors as in `run_batches`."""
        return run_batches(batches, lambda rows: self.run(loaded, rows), f"{self.kind} {self.label}")

    def check_length(self, context: int | None, flag: str) -> None:
        """Raises BadInput for an item that leaves no space for an answer in the model's context."""
        for item, ids in zip(self.items, self.ids, strict=True):
            if context is not None and len(ids) >= context:
                raise BadInput(
                    f"{flag} {item.source}: row {item.row} has {len(ids)} tokens, the model a context of {context}; "
                    "leave it out"
                )
