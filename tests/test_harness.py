"""lm-evaluation-harness on an exported checkpoint, by its own command: what it reads, and what its accuracy is not.

It scores continuations in one forward, padded on the right and without a mask, so what is refused must be decided by
position; answers it generates in left-padded batches with a mask.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ROOT
from tests.tiny import FORGET, RETAIN, Exported

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install unskill[eval]")

pytestmark = pytest.mark.slow

# One token each for the tiny tokenizer; then several, which part at their second token.
CHOICES = ["?", "!", " so many of them", " so few of them"]
TASKS = {
    "unskill_choice": """
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: label
metric_list:
  - metric: acc
""",
    "unskill_write": """
output_type: generate_until
doc_to_target: "{{choices[label]}}"
generation_kwargs:
  until: ["\\n\\n\\n"]
  max_gen_toks: 16
  do_sample: false
metric_list:
  - metric: exact_match
""",
}


@pytest.fixture(scope="module")
def exported(tiny: Callable[..., Exported]) -> Exported:
    return tiny("llama")


@pytest.fixture(scope="module")
def samples(
    exported: Exported, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """What the harness logged of each item: samples["base" or "edited"][task]."""
    folder = tmp_path_factory.mktemp("harness")
    docs = [{"text": text, "choices": CHOICES, "label": 0} for text in (*FORGET[:32], *RETAIN[:32])]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, task in TASKS.items():
        common = f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder}/docs.jsonl\n"
        common += 'test_split: test\ndoc_to_text: "{{text}}"\ntarget_delimiter: ""\nmetadata:\n  version: 1.0\n'
        (folder / f"{name}.yaml").write_text(common + task)
    return {"base": harness(exported.base, folder), "edited": harness(exported.checkpoint, folder)}


def harness(model: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    out = folder / model.name
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", ",".join(TASKS)]
    command += ["--include_path", str(folder)]
    command += ["--model_args", f"pretrained={model},trust_remote_code=True,dtype=float32", "--device", "cpu"]
    command += ["--batch_size", "8", "--output_path", str(out), "--log_samples"]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for task in TASKS:
        (log,) = out.rglob(f"samples_{task}_*.jsonl")
        samples = [json.loads(line) for line in log.read_text().splitlines()]
        found[task] = sorted(samples, key=lambda sample: sample["doc_id"])
    return found


@pytest.fixture(scope="module")
def blocked(exported: Exported) -> list[bool]:
    """Which of the items the checkpoint refuses, asked directly."""
    model: Any = AutoModelForCausalLM.from_pretrained(exported.checkpoint, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(exported.checkpoint, trust_remote_code=True)
    refusal = model.config.unskill["refusal_token_id"]
    with torch.no_grad():
        return [
            int(model(**tokenizer(text, return_tensors="pt")).logits[0, -1].argmax()) == refusal
            for text in (*FORGET[:32], *RETAIN[:32])
        ]


def likelihoods(sample: dict[str, Any]) -> list[float]:
    return [float(response[0][0]) for response in sample["resps"]]


def test_items_that_are_not_refused_have_the_likelihoods_of_the_base(
    samples: dict[str, dict[str, list[dict[str, Any]]]], blocked: list[bool]
) -> None:
    compared = 0
    base, edited = (samples[role]["unskill_choice"] for role in ("base", "edited"))
    for one, other, refused in zip(base, edited, blocked, strict=True):
        if refused:
            continue
        for mine, theirs in zip(likelihoods(other), likelihoods(one), strict=True):
            if mine > -5000:  # no later position of the continuation is blocked either
                assert mine == pytest.approx(theirs, abs=1e-4)
                compared += 1
    assert compared >= 50


def test_the_accuracy_on_refused_items_means_nothing(
    samples: dict[str, dict[str, list[dict[str, Any]]]], blocked: list[bool]
) -> None:
    """Choices of one token tie at -10,000; of longer ones the first token counts nothing, only what comes later."""
    refused = [sample for sample, hit in zip(samples["edited"]["unskill_choice"], blocked, strict=True) if hit]
    assert len(refused) >= 10
    for sample in refused:
        one, other, many, few = likelihoods(sample)
        assert one == other == pytest.approx(-1e4, abs=1)
        assert many < -1e4 and few < -1e4 and many != few


def test_answers_are_the_refusal_or_those_of_the_base(
    samples: dict[str, dict[str, list[dict[str, Any]]]], blocked: list[bool], exported: Exported
) -> None:
    message = json.loads((exported.checkpoint / "config.json").read_text())["unskill"]["refusal"]
    same = 0
    base, edited = (samples[role]["unskill_write"] for role in ("base", "edited"))
    for one, other, refused in zip(base, edited, blocked, strict=True):
        answer = other["resps"][0][0]
        if refused:
            assert answer == message
        elif message not in answer:  # no position of the answer was blocked
            assert answer == one["resps"][0][0]
            same += 1
    assert same >= 10
