"""An evaluation of a tiny checkpoint, and what it is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.evaluation.run import evaluate
from exporter.evaluation.settings import EvaluateSettings
from tests.tiny import FORGET, RETAIN, Exported, one_thread

QUESTIONS = [
    {"subject": subject, "question": f"What is {a} and {b}?", "choices": [str(a), str(b), str(a + b)], "answer": 2}
    for subject in ("sums", "more_sums")
    for a, b in ((1, 2), (3, 4), (5, 16), (17, 8))
]
# The last has a blocked position within, after which it goes on.
TEXTS = FORGET[20:24] + RETAIN[20:24] + ["Hi there.", FORGET[0] + " Five of them."]


def evaluated(exported: Exported, out: Path, sources: dict[str, tuple[str, ...]], **changes: Any) -> dict[str, Any]:
    asked = {"base": str(exported.base), "prompt_template": "{prompt}", "quiet": True, **changes}
    with one_thread():
        return evaluate(EvaluateSettings(str(exported.checkpoint), out, sources, **asked), lambda text: None)


def task(summary: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(each for each in summary["tasks"] if each["task"] == kind)
