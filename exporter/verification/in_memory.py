"""The loaded checkpoint, for the checks of what it does, and ways to run it with other interventions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from custom_modeling.buffers import KSD_BOUNDS, KSD_LIMITS
from exporter.checkpoint.layout import SUMMARY
from exporter.models.loading import LoadedModel, load_checkpoint, plain_base
from exporter.prompts.formats import FORMATS, Formatter, Query
from exporter.prompts.packaged import everyday_prompts
from exporter.prompts.switches import State
from exporter.verification.on_disk import OnDisk

FEW = 4
"""Everyday prompts where any would do."""


@dataclass(frozen=True)
class InMemory:
    """A checkpoint on disk and in memory."""

    view: OnDisk
    loaded: LoadedModel

    @classmethod
    def load(cls, view: OnDisk, dtype: str, device: str = "cpu") -> InMemory:
        """With the checkpoint's own code. Raises BadInput where it does not load."""
        return cls(view, load_checkpoint(str(view.folder), dtype, device))

    @property
    def record(self) -> dict[str, Any]:
        return self.loaded.settings

    @cached_property
    def formatter(self) -> Formatter:
        """Formats prompts as for the hypercubes; where there are none, as they are."""
        states = [State(name) for name in self.view.read(SUMMARY)["formats"] if name not in FORMATS]
        return self.loaded.formatter(self.loaded.template or "{prompt}", skip_long=True, states=states)

    @cached_property
    def plain(self) -> InMemory:
        """The same weights in the family's own classes: no intervention, and no R where its row was added."""
        return replace(self, loaded=plain_base(self.loaded))

    @cached_property
    def some(self) -> list[Query]:
        """A few everyday prompts, formatted."""
        return self.formatter.format(everyday_prompts()[:FEW], "everyday")

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits (positions, vocabulary) of one prompt; the authors' code draws the same each time."""
        devices = [self.loaded.device] if self.loaded.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices):
            torch.manual_seed(0)
            found: Tensor = self.loaded.model(input_ids=torch.tensor([ids], device=self.loaded.device)).logits[0]
        return found

    def answer(self, ids: Sequence[int], new_tokens: int, as_exported: bool = False) -> list[int]:
        """Ids that follow a prompt, greedily, up to the first EOS.

        generation_config.json is ignored (a min_new_tokens there forbids the EOS after a refusal); with `as_exported`
        transformers completes the settings from it, as for the answers that the export measured.
        """
        model, greedy = self.loaded.model, self.loaded.greedy(new_tokens)
        given = torch.tensor([ids], device=self.loaded.device)
        # generate() completes the settings it is given from the model's own.
        own = nullcontext() if as_exported else mock.patch.object(model, "generation_config", greedy)
        with torch.inference_mode(), own:
            output = model.generate(input_ids=given, attention_mask=torch.ones_like(given), generation_config=greedy)
        found: list[int] = output[0, len(ids) :].tolist()
        return found


@contextmanager
def filled(live: InMemory, buffer: str, values: Callable[[Sequence[int]], Tensor]) -> Iterator[None]:
    """While this holds, every buffer of this name has the values for its shape."""
    buffers = [tensor for name, tensor in live.loaded.model.named_buffers() if name.endswith(f".{buffer}")]
    kept = [tensor.clone() for tensor in buffers]
    for tensor in buffers:
        tensor.copy_(values(tensor.shape))
    try:
        yield
    finally:
        for tensor, before in zip(buffers, kept, strict=True):
            tensor.copy_(before)


@contextmanager
def regions_filled(live: InMemory, bounds: Callable[[Sequence[int]], Tensor]) -> Iterator[None]:
    """While this holds, every region has these bounds of the key and of its coordinates."""
    with filled(live, KSD_BOUNDS, bounds), filled(live, KSD_LIMITS, bounds):
        yield


@contextmanager
def unpruned(live: InMemory) -> Iterator[None]:
    """While this holds, no neuron is pruned."""
    pruning = [each for each in live.loaded.model.modules() if getattr(each, "unskill_pruned", 0)]
    with ExitStack() as stack:
        for module in pruning:
            stack.enter_context(mock.patch.object(module, "unskill_pruned", 0))
        yield


def move_always(shape: Sequence[int]) -> Tensor:
    """Params (4, n) by which every pre-activation of an ordinary size is moved, and far."""
    return torch.tensor([[0.0], [1.0], [100.0], [1.0]]).expand(*shape)
