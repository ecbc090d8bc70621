"""One export of a real model: it blocks problems it never saw, answers all else as before, and passes every check."""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import verified
from tests.tiny import Exported

pytestmark = pytest.mark.real

LOAD_CHECKS = "loads,tokenizer,without_trust,buffer_altered,buffer_missing,record_edited,greedy"
# Minutes each on a model of this size: `make evidence` runs them on it too (test_matrix.py).
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


def test_load_checks(real_export: Exported, check: Callable[..., dict[str, str]]) -> None:
    assert len(check(real_export, threads=None, only=LOAD_CHECKS)) == LOAD_CHECKS.count(",") + 1


@pytest.mark.slow
def test_checks(real_export: Exported, check: Callable[..., dict[str, str]]) -> None:
    check(real_export, threads=None, skip=SLOW_CHECKS)


@pytest.mark.slow
def test_verify_finds_nothing_wrong(real_export: Exported) -> None:
    forget = real_export.checkpoint.parent / "forget.jsonl"
    found = verified(real_export.checkpoint, "--forget", f"{forget},column=prompt")
    left_out = {name for name, passed in found.items() if not passed}
    assert len(found) == 20 and left_out == {"neurons"}


@pytest.mark.slow
@pytest.mark.evidence
def test_recipe_makes_the_same_checkpoint_again(real_export: Exported, tmp_path: Path) -> None:
    """Every file, to the byte."""
    recipe, data = real_export.checkpoint / "reproduce" / "recipe.toml", real_export.checkpoint.parent
    again = tmp_path / real_export.checkpoint.name
    command = [sys.executable, "-m", "exporter", "export", str(again), "--recipe", str(recipe), "--quiet"]
    for folder in (data, real_export.base.parent):
        command += ["--data", str(folder)]
    subprocess.run(command, cwd=tmp_path, check=True)
    names = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        for folder in (real_export.checkpoint, again)
    ]
    assert names[0] == names[1]
    assert filecmp.cmpfiles(real_export.checkpoint, again, names[0], shallow=False)[1:] == ([], [])


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
