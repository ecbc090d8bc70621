"""What a person is told of an export first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.checkpoint.summary import SkillSummary, Summary
from exporter.checkpoint.verdict import verdict

OLD = sorted((Path(__file__).resolve().parents[2] / "data").rglob("reproduce/summary.json"))


def rate(hits: int, total: int) -> dict[str, Any]:
    return {"hits": hits, "total": total, "low": 0.611, "high": 0.776, "rate": hits / total if total else None}


def skill(**key_space: Any) -> SkillSummary:
    promised = {"hits": 1, "total": 2, "bound": 0.5}
    trial = {"layer": 2, "shrinkage": 1.0, "blocked": {"terse": 0.5}, "mean": 0.5, "area": 0.9, "margin": 1.0}
    forms = {"terse": (6, 9), "chatty": (7, 9), "frame": (0, 3)}
    regions = {
        "places": ["prompt"],
        "left_out": trial,
        "trials": [trial],
        **dict.fromkeys(("blocked", "false_blocks", "near_misses", "after_refusals"), promised),
        "forms": {form: {"all": rate(*count)} for form, count in forms.items()},
        "near_miss_forms": {},
        **dict.fromkeys(("answers", "words", "interior"), rate(0, 9)),
        "answer_tokens": 64,
        "phrases": {},
    }
    kinds = {"all": rate(134, 250), "plain": rate(87, 125), "prefill": rate(0, 37), "system": rate(9, 9)}
    false = {
        "everyday": (0, 337),
        "skill code": (1, 12),
        "maths near misses": (7, 204),
        "harmless after a refusal": (4, 65),
    }
    found = {
        "hypercubes": ["prompt"],
        "layer": 2,
        "alpha": {"value": 0.5, "calibrated_on": 500, "promise": 0.6, "confidence": 0.9},
        "separates": True,
        "fault": None,
        "max_false_block": 0.01,
        "target_block_rate": 0.95,
        "everyday_kinds_over_answers": {},
        "frames": [],
        "layers": [],
        "blocked": {"maths": kinds},
        "false_blocks": {source: {"all": rate(*count)} for source, count in false.items()},
        "discriminant": regions,
        **key_space,
    }
    about = {"name": "maths", "method": "ksd", "works": True, "sources": [], "parts": {}, "neurons": None}
    return SkillSummary.from_json({**about, "key_space": found})


def test_three_lines() -> None:
    assert verdict(skill()) == [
        "Refuses 87 of 125 held-out maths prompts that come as first messages (61% to 78%); of its 2 forms, over "
        "all kinds of turn, fewest of terse, 6 of 9.",
        "Refuses in error 1 of 349 other prompts, 7 of 204 near misses, 4 of 65 messages after a refusal, "
        "a position of 0 of 9 answers to others.",
        "Asked otherwise: system 9 of 9, prefill 0 of 37.",
    ]


def test_several_sources_are_counted_together() -> None:
    both = {"a.csv": {"all": rate(1, 4), "plain": rate(1, 3)}, "b.csv": {"all": rate(5, 6), "plain": rate(2, 3)}}
    first, *_ = verdict(skill(blocked=both, discriminant=None))
    assert first == "Refuses 3 of 6 held-out maths prompts that come as first messages."


def test_a_skill_without_a_name() -> None:
    first, *_ = verdict(skill().model_copy(update={"name": "skill"}))
    assert first.startswith("Refuses 87 of 125 held-out forget prompts that come as first messages ")


def test_what_does_not_separate_is_said_first() -> None:
    assert verdict(skill(fault="no layer separates"))[0] == "NOT SEPARATED: no layer separates."


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.parts[-3])
def test_older_summaries(path: Path) -> None:
    for each in Summary.from_json(json.loads(path.read_text())).skills:
        lines = verdict(each)
        assert any(line.startswith("Refuses in error ") for line in lines) and lines[-1].startswith(
            "Asked otherwise: "
        )
