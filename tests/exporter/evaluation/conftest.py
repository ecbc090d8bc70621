"""A checkpoint to evaluate, and a source of each kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.exporter.evaluation.evaluating import QUESTIONS, TEXTS
from tests.tiny import FORGET, RETAIN, Exported, write_prompts


@pytest.fixture(scope="session")
def exported(tiny: Callable[..., Exported]) -> Exported:
    return tiny("llama")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("sources")
    choices = folder / "choices.jsonl"
    choices.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return {
        "forget": (str(write_prompts(folder / "forget.jsonl", FORGET[:12])),),
        "retain": (str(write_prompts(folder / "retain.jsonl", RETAIN[:12])),),
        "text": (str(write_prompts(folder / "texts.jsonl", TEXTS)),),
        "choice": (str(choices),),
        "gsm8k": (str(sums(folder / "sums.jsonl")),),
    }


def sums(path: Path) -> Path:
    rows = [{"question": f"{a} + 2 =", "answer": f"It is {a + 2}.\n#### {a + 2}"} for a in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
