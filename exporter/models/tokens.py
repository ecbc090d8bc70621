"""Token ids of a model: padded rows, positions, what ends an answer, how many fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from exporter.common.errors import BadInput


def positions_of(inputs: dict[str, Tensor]) -> Tensor:
    """Position ids of what `padded` gives; those of pads are 0."""
    return (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)


def padded(ids: Sequence[Sequence[int]], pad_id: int, side: str, device: torch.device) -> dict[str, Tensor]:
    """Token ids and mask (rows, positions), padded on the left or the right."""
    width = max(len(row) for row in ids)
    rows, mask = [], []
    for row in ids:
        pads, real = [pad_id] * (width - len(row)), list(row)
        rows.append(pads + real if side == "left" else real + pads)
        mask.append([0] * len(pads) + [1] * len(real) if side == "left" else [1] * len(real) + [0] * len(pads))
    return {"input_ids": torch.tensor(rows, device=device), "attention_mask": torch.tensor(mask, device=device)}


def blocked(logits: Any) -> Any:
    """Where R's logits, a tensor or an array, are those of a blocked position: of the same shape, bool.

    There R's logit is 0; everywhere else the checkpoint lowers it by 10,000, or sets it to -50 after R itself.
    """
    return logits > -25


def eos_ids(model: PreTrainedModel, name: str) -> list[int]:
    """Ids that end an answer: the generation config's, else the config's. Raises BadInput where there are none."""
    for config in (model.generation_config, model.config):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
    raise BadInput(f"MODEL {name} names no EOS token (eos_token_id in generation_config.json or config.json)")


def context_of(model: PreTrainedModel) -> int | None:
    """Number of positions that the model was made for, where its config says so."""
    length: Any = getattr(model.config, "max_position_embeddings", None)
    return int(length) if length else None
