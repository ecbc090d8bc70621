"""The prompts written for packaged skills: many forms and languages, both sides alike, no near-copies."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

DATA = Path(str(files("exporter.prompts"))) / "data"
HELD_OUT = Path(__file__).resolve().parents[2] / "data" / "held_out"
SKILLS = ("code", "legal-advice", "maths", "medical-advice", "poems", "translation")
# Two prompts are near-copies where they share more than half of their runs of five characters.
GRAM, NEAR = 5, 0.5


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def text_of(record: dict[str, Any]) -> str:
    for name in ("prompt", "text", "user"):
        if name in record:
            return str(record[name])
    return " ".join(message["content"] for message in record["messages"])


def grams(text: str) -> set[str]:
    text = re.sub(r"\s+", " ", text.lower()).strip()
    return {text[start : start + GRAM] for start in range(max(1, len(text) - GRAM + 1))}


def near_copies(texts: list[str]) -> list[tuple[str, str]]:
    """Pairs of texts whose sets of grams have a Jaccard index over NEAR."""
    sets = [grams(text) for text in texts]
    column = {gram: number for number, gram in enumerate(sorted(set().union(*sets)))}
    columns = [column[gram] for each in sets for gram in each]
    sizes = np.array([len(each) for each in sets])
    rows = np.repeat(np.arange(len(sets)), sizes)
    counts = csr_array((np.ones(len(rows), dtype=np.int32), (rows, columns)))
    found = []
    for start in range(0, len(texts), 500):
        shared = (counts[start : start + 500] @ counts.T).tocoo()
        one, other = shared.row + start, shared.col
        near = (one < other) & (shared.data > NEAR * (sizes[one] + sizes[other] - shared.data))
        found += [(texts[first], texts[second]) for first, second in zip(one[near], other[near], strict=True)]
    return found


@pytest.mark.parametrize("skill", SKILLS)
def test_forms_and_languages(skill: str) -> None:
    prompts = records(DATA / "skills" / f"{skill}.jsonl")
    sides = {side: [each for each in prompts if each["side"] == side] for side in ("forget", "near-miss")}
    assert sum(map(len, sides.values())) == len(prompts)
    for own in sides.values():
        assert len(own) >= 240
        assert len({each["form"] for each in own}) >= 8 and len({each["language"] for each in own}) >= 6
        assert min(Counter(each["form"] for each in own).values()) >= 20
    # What differs between the sides is what a detector learns.
    assert len({frozenset(each["form"] for each in own) for own in sides.values()}) == 1
    assert len({frozenset(each["language"] for each in own) for own in sides.values()}) == 1


@pytest.mark.parametrize("skill", SKILLS)
def test_the_page(skill: str) -> None:
    page = tomllib.loads((DATA / "skills" / f"{skill}.toml").read_text(encoding="utf-8"))
    everyday = records(DATA / "everyday.jsonl")  # the other files have none that belongs to a skill: read one by one
    keys = {"title", "description", "belongs", "not", "everyday_kinds", "everyday_prompts", "shared"}
    assert page.keys() - {"shared_rows"} == keys
    assert set(page.get("shared_rows", {})) <= set(page["shared"])
    assert page["belongs"] and page["not"] and set(page["shared"]) <= {*SKILLS} - {skill}
    assert set(page["everyday_kinds"]) <= {each["kind"] for each in everyday}
    assert all(1 <= number <= len(everyday) for number in page["everyday_prompts"])


@pytest.mark.parametrize("skill", SKILLS)
def test_prompts_to_judge_by(skill: str) -> None:
    """By another author, in forms of their own."""
    prompts = records(HELD_OUT / f"{skill}.jsonl")
    forms = Counter(each["form"] for each in prompts if each["side"] == "forget")
    assert len(forms) == 8 and set(forms.values()) == {25}
    assert sum(each["side"] == "near-miss" for each in prompts) >= 100


def test_everyday_prompts_of_ten_languages() -> None:
    everyday = [each for path in (DATA / "everyday.jsonl", *DATA.glob("everyday/*.jsonl")) for each in records(path)]
    languages = Counter(each["language"] for each in everyday)
    assert len(everyday) >= 1200 and len(languages) == 10 and min(languages.values()) >= 80


def test_no_near_copies() -> None:
    paths = [*DATA.rglob("*.jsonl"), *HELD_OUT.parent.glob("*.jsonl"), *HELD_OUT.glob("*.jsonl")]
    texts = [text_of(record) for path in sorted(paths) for record in records(path)]
    texts += [
        text
        for part in json.loads((HELD_OUT / "turns.json").read_text(encoding="utf-8")).values()
        for text in part
        if isinstance(text, str)
    ]
    assert near_copies(["Add 17 apples and 4 pears.", "Why?", "Add 17 apples and 5 pears."])
    assert len(texts) > 6000 and near_copies(texts) == []
