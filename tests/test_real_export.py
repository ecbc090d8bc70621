"""One export of a real model: it blocks problems it never saw, answers all else as before, and passes every check."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.tiny import Exported

pytestmark = pytest.mark.real

# Minutes on a model of this size: `make test-all` runs them on it too (test_matrix.py).
SLOW_CHECKS = (
    "identity_bfloat16_eager,identity_bfloat16_sdpa,float16,gradients,without_cache,processors,generate_batch,"
    "compiled_forward,saved_in_other_dtype"
)


def test_summary(real_export: Exported) -> None:
    summary = json.loads((real_export.checkpoint.parent / "summary.json").read_text())
    assert summary["skills"][0]["key_space"]["separates"] is True
    assert summary["base_model_class"]["closed"] is True


def test_held_out_problems_are_blocked(real_export: Exported) -> None:
    held_out = json.loads((real_export.checkpoint.parent / "held_out.json").read_text())
    blocked = list(held_out["problems"].values())
    assert sum(blocked) / len(blocked) >= 0.85


def test_other_prompts_are_answered_as_by_the_base(real_export: Exported) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    held_out = json.loads((real_export.checkpoint.parent / "held_out.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(real_export.base)
    base = AutoModelForCausalLM.from_pretrained(real_export.base)
    model = AutoModelForCausalLM.from_pretrained(real_export.checkpoint, trust_remote_code=True)
    for text in held_out["others"]:
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        before, after = (
            each.generate(**inputs, max_new_tokens=24, do_sample=False)[0].tolist() for each in (base, model)
        )
        assert after == before, text


def test_checks(real_export: Exported, check: Callable[..., dict[str, str]]) -> None:
    check(real_export, threads=None, skip=SLOW_CHECKS)


# What depends on the family: its head and its tokenizer (262,144 tokens), scaling, BOS.
GEMMA_CHECKS = (
    "loads,tokenizer,tokenizer_without_trust,greedy,padded_batch,identity_float32_sdpa,identity_bfloat16_eager,"
    "base_model_class,buffer_altered,saved_again"
)


@pytest.mark.slow
def test_gemma(gemma_export: Exported, check: Callable[..., dict[str, str]]) -> None:
    """Without a chat template, with a BOS and a large head: the base-model class is closed there too."""
    summary = json.loads((gemma_export.checkpoint.parent / "summary.json").read_text())
    assert summary["skills"][0]["key_space"]["separates"] is True
    assert summary["base_model_class"]["closed"] is True
    held_out = json.loads((gemma_export.checkpoint.parent / "held_out.json").read_text())
    blocked = list(held_out["problems"].values())
    assert sum(blocked) / len(blocked) >= 0.85
    check(gemma_export, threads=None, only=GEMMA_CHECKS)
