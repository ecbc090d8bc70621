"""`unskill evaluate` asks in the form that the export's prompts had, unless the user says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.evaluation.run import evaluate
from exporter.evaluation.settings import EvaluateSettings
from tests.tiny import FORGET, TEMPLATE, one_thread, write_prompts

ASKED = FORGET[:16]


def refused(checkpoint: Path, folder: Path, **changes: Any) -> int:
    sources = {"forget": (str(write_prompts(folder / "forget.jsonl", ASKED)),)}
    settings = EvaluateSettings(str(checkpoint), folder / "out", sources, quiet=True, overwrite=True, **changes)
    with one_thread():
        (task,) = evaluate(settings, lambda text: None)["tasks"]
    return int(task["edited"]["refused"]["all"]["hits"])


def refused_directly(checkpoint: Path, template: str) -> int:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    found = 0
    for text in ASKED:
        with torch.no_grad():
            logits = model(**tokenizer(template.replace("{prompt}", text), return_tensors="pt")).logits
        found += int(logits[0, -1].argmax()) == model.config.unskill["refusal_token_id"]
    return found


def test_default_template_is_the_exports_and_a_flag_wins(templated: Path, tmp_path: Path) -> None:
    recorded, bare = refused_directly(templated, TEMPLATE), refused_directly(templated, "{prompt}")
    assert recorded > len(ASKED) / 2 > bare
    assert refused(templated, tmp_path) == recorded
    assert refused(templated, tmp_path, prompt_template="{prompt}") == bare
