"""The base out of a checkpoint's own weights against the base on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from exporter.cli.chat.run import padding_refusal
from exporter.models.loading import load_checkpoint, plain_base
from tests.tiny import Exported, one_thread, tiny_export


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with one_thread(), torch.inference_mode():
        return model(ids).logits


def tensors(model: Any) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("llama", "ksd"),
        ("llama", "na+ksd"),
        ("llama", "sp"),
        ("gemma3_text", "ksd"),
        ("cohere", "ksd"),
        ("qwen2", "na"),
    ],
)
def test_logits_bit_by_bit_and_no_memory_of_its_own(tiny: Callable[..., Exported], family: str, method: str) -> None:
    exported = tiny(family, method)
    base_folder = exported.base if method != "na+ksd" else tiny(family).base
    edited = load_checkpoint(str(exported.checkpoint), "auto", "cpu")
    real, base = AutoModelForCausalLM.from_pretrained(base_folder), plain_base(edited)
    assert type(base.model) is type(real) and base.model.config.model_type == real.config.model_type
    ids = torch.randint(3, 300, (3, 19), generator=torch.Generator().manual_seed(0))
    expected, found = logits_of(real, ids), logits_of(base.model, ids)
    assert torch.equal(found, expected)
    assert not torch.equal(logits_of(edited.model, ids)[..., : found.shape[-1]], expected) or method == "ksd"
    theirs = {tensor.untyped_storage().data_ptr() for tensor in tensors(edited.model).values()}
    for name, tensor in tensors(base.model).items():
        assert tensor.untyped_storage().data_ptr() in theirs, name
    # The checkpoint is as it was.
    again = load_checkpoint(str(exported.checkpoint), "auto", "cpu")
    assert torch.equal(logits_of(edited.model, ids), logits_of(again.model, ids))


def test_a_padding_row_that_R_took(tmp_path: Path) -> None:
    exported = tiny_export(tmp_path, "llama", padding_rows=8)
    edited = load_checkpoint(str(exported.checkpoint), "auto", "cpu")
    base, real = plain_base(edited), AutoModelForCausalLM.from_pretrained(exported.base)
    refusal = padding_refusal(edited)
    assert refusal == edited.refusal_id is not None
    ids = torch.randint(3, 300, (2, 19), generator=torch.Generator().manual_seed(0))
    expected, found = logits_of(real, ids), logits_of(base.model, ids)
    others = torch.arange(expected.shape[-1]) != refusal
    assert torch.equal(found[..., others], expected[..., others]) and found.shape == expected.shape
