"""Token ids: padding, positions, context length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel


def positions_of(inputs: dict[str, Tensor]) -> Tensor:
    """Position ids for the inputs of `padded`; pads have 0."""
    return (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)


def padded(ids: Sequence[Sequence[int]], pad_id: int, side: str, device: torch.device) -> dict[str, Tensor]:
    """Token ids and mask (rows, positions), padded on the left or the right."""
    rows = [torch.tensor(row, dtype=torch.long) for row in ids]
    pad = partial(pad_sequence, batch_first=True, padding_side=side)
    masks = pad([torch.ones_like(row) for row in rows])
    return {"input_ids": pad(rows, padding_value=pad_id).to(device), "attention_mask": masks.to(device)}


def blocked(logits: Any) -> Any:
    """Whether each of R's logits, a tensor or an array, is of a blocked position: bool, of the same shape.

    There R's logit is 0; everywhere else the checkpoint lowers it by 10,000, or sets it to -50 after R itself.
    """
    return logits > -25


def context_of(model: PreTrainedModel) -> int | None:
    """Context length of the model, if its config has it."""
    length: Any = getattr(model.config, "max_position_embeddings", None)
    return int(length) if length else None
