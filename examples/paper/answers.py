"""A model's own greedy answers, as token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig

from exporter.models.batches import ANSWER_TOKENS, batched
from exporter.models.loading import LoadedModel


def answers(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], new_tokens: int, batch_size: int | None
) -> list[list[int]]:
    """Answers to prompts of token ids, of at most `new_tokens` each; an EOS ends one and is not of it."""
    eos = loaded.eos_ids
    greedy = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=eos, pad_token_id=loaded.pad_id)
    found: list[list[int]] = [[] for _ in prompts]
    lengths = [len(ids) + new_tokens for ids in prompts]
    for rows in batched(range(len(prompts)), lengths.__getitem__, ANSWER_TOKENS, batch_size, new_tokens):
        inputs = loaded.pad([prompts[row] for row in rows], "left")
        with torch.inference_mode():
            output = loaded.model.generate(**inputs, generation_config=greedy)
        for row, ids in zip(rows, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            end = next((place for place, token in enumerate(ids) if token in eos), len(ids))
            found[row] = ids[:end]
    return found
