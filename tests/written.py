"""What a faked model writes for a description: short prompts of a packaged skill, no two of them near-copies."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.pipeline.described import Write
from exporter.prompts.packaged import records_of
from exporter.prompts.requests import EACH, FORGET, NEAR_MISS, Question
from exporter.prompts.written import Candidate

DESCRIBE, NOT = "Word problems with small numbers", "letters that thank for a present"
SAID = (DESCRIBE, NOT)
FORMS = ("question", "terse", "chatty", "instruction", "task")


def prompts_of(side: str) -> list[str]:
    return [
        each["prompt"]
        for each in records_of("skills/maths.jsonl")
        if each["side"] == side and len(each["prompt"]) < 90
    ]


def candidates(forget: int = 30, near: int = 20, forms: int = 5) -> list[Candidate]:
    """So many prompts of each side, in so many forms."""
    return [
        Candidate(side, FORMS[place % forms], "en", text)
        for side, count in ((FORGET, forget), (NEAR_MISS, near))
        for place, text in enumerate(prompts_of(side)[:count])
    ]


def fake_writer(forget: int = 40, near: int = 30) -> Write:
    """A model that lists so many prompts of each side, and then nothing."""
    left = {FORGET: prompts_of(FORGET)[:forget], NEAR_MISS: prompts_of(NEAR_MISS)[:near]}

    def write(questions: Sequence[Question], what: str) -> list[list[str]]:
        if what.endswith("sub-topics"):
            return [["fruit", "money"] for _ in questions]
        found = []
        for question in questions:
            side = NEAR_MISS if NOT in question.text else FORGET
            found.append([left[side].pop() for _ in range(min(EACH, len(left[side])))])
        return found

    return write
