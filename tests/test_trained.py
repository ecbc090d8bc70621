"""A model of each form, trained for some seconds to tell two kinds of prompts apart, exported with all defaults of
hypercubes, and asked what nothing was fitted on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from exporter.pipeline.python import load
from exporter.pipeline.run import export
from tests.tiny import FORGET, RETAIN, one_skill, one_thread, tiny_model, write_prompts

STEPS, ROWS = 150, 20
# One thing of each name; all names and things are in the others.
HELD_OUT = [5 * name + name % 5 for name in range(20)]
ANSWERS = {"forget": " There are seven of them.", "retain": " Dear friend, thank you."}

pytestmark = pytest.mark.slow


def others(texts: list[str]) -> list[str]:
    return [text for row, text in enumerate(texts) if row not in HELD_OUT]


def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Train on prompts with the answer of their kind; returns the last loss, in nats a token."""
    torch.manual_seed(0)
    texts = [text + ANSWERS["forget"] for text in others(FORGET)] + [
        text + ANSWERS["retain"] for text in others(RETAIN)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(STEPS):
        rows = torch.randint(len(texts), (ROWS,)).tolist()
        batch = tokenizer([texts[row] for row in rows], return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        logits = model(**batch).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return float(loss.detach())


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3_moe", "starcoder2"])
def test_refuses_one_kind_and_answers_the_other(family: str, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", family, chat=False, initializer_range=0.05)
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = AutoModelForCausalLM.from_pretrained(base)
    with one_thread():
        assert train(plain, tokenizer) < 1.0
        plain.save_pretrained(base)
        check(base, plain, tokenizer, tmp_path)


def check(base: Path, plain: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    forget, retain = (
        f"{write_prompts(tmp_path / f'{name}.jsonl', others(texts))},column=prompt"
        for name, texts in (("forget", FORGET), ("retain", RETAIN))
    )
    settings = {"everyday": False, "prompt_template": "{prompt}", "formats": "plain"}
    export(one_skill(base, tmp_path / "out", forget, retain, **settings), print)
    edited = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    refusal = edited.config.unskill["refusal_token_id"]
    for texts, least, most in ((FORGET, 18, 20), (RETAIN, 0, 0)):
        refused = 0
        for text in map(texts.__getitem__, HELD_OUT):
            ids = tokenizer(text, return_tensors="pt")
            with torch.no_grad():
                ours, theirs = edited(**ids).logits, plain(**ids).logits
            if bool(ours[0, -1].argmax() == refusal):
                refused += 1
            else:
                assert torch.equal(ours[..., : theirs.shape[-1]], theirs)
        assert least <= refused <= most
    assert [each.blocked_after for each in load(tmp_path / "out").explain(FORGET[HELD_OUT[0]])] == [0]
