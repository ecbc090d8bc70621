"""The loaded checkpoint, for the checks of what it does, and ways to run it otherwise than it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import GenerationConfig

from exporter.models.loading import LoadedModel, load_checkpoint, plain_base
from exporter.models.tokens import eos_ids
from exporter.prompts.formats import Formatter, Query
from exporter.prompts.packaged import everyday_prompts
from exporter.verification.view import View

FEW = 4
"""Everyday prompts where any would do."""


@dataclass(frozen=True)
class Live:
    """A checkpoint on the disk and in memory."""

    view: View
    loaded: LoadedModel

    @classmethod
    def load(cls, view: View, dtype: str, device: str = "cpu") -> Live:
        """With the checkpoint's own code. Raises BadInput where they do not load."""
        return cls(view, load_checkpoint(str(view.folder), dtype, device))

    @property
    def record(self) -> dict[str, Any]:
        return self.loaded.settings

    @cached_property
    def formatter(self) -> Formatter:
        """As prompts were formatted for the hypercubes; where there are none, bare."""
        return self.loaded.formatter(self.loaded.template or "{prompt}", skip_long=True)

    @cached_property
    def plain(self) -> Live:
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
        """Ids that follow a prompt, greedily, up to the first end.

        By nothing of generation_config.json (a min_new_tokens there forbids what ends a refusal); with `as_exported`
        by what transformers takes from it, as in the answers that the export measured.
        """
        given = torch.tensor([ids], device=self.loaded.device)
        greedy = GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=eos_ids(self.loaded.model, self.loaded.name),
            pad_token_id=self.loaded.pad_id,
        )
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if not as_exported:  # what a configuration leaves open is taken from the model's own
                stack.enter_context(mock.patch.object(self.loaded.model, "generation_config", greedy))
            output = self.loaded.model.generate(
                input_ids=given, attention_mask=torch.ones_like(given), generation_config=greedy
            )
        found: list[int] = output[0, len(ids) :].tolist()
        return found


@contextmanager
def filled(live: Live, buffer: str, values: Callable[[Sequence[int]], Tensor]) -> Iterator[None]:
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
def unpruned(live: Live) -> Iterator[None]:
    """While this holds, no neuron is pruned."""
    pruning = [each for each in live.loaded.model.modules() if getattr(each, "unskill_pruned", 0)]
    with ExitStack() as stack:
        for module in pruning:
            stack.enter_context(mock.patch.object(module, "unskill_pruned", 0))
        yield


def move_always(shape: Sequence[int]) -> Tensor:
    """Params (4, n) by which every pre-activation of an ordinary size is moved, and far."""
    return torch.tensor([[0.0], [1.0], [100.0], [1.0]]).expand(*shape)
