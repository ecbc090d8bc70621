"""Warnings about regions along discriminants: few prompts, small budgets, forms that are missed, words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from exporter.common.rates import rate
from exporter.methods.key_space.budget import at_least
from exporter.methods.key_space.detection import Detection
from exporter.pipeline.outcome_warnings import blocks_little, few_prompts, misses_forms, reads_words
from exporter.recipes.settings import SkillSettings

SKILL = SkillSettings(("f",), ("r",), name="sums")


def regions(parts: tuple[int, int], blocked: int, **left_out: float) -> Detection:
    """What was found, of so many prompts to fit and to report."""
    plain = dict(zip(("fit", "report"), map(range, parts), strict=True))
    found = SimpleNamespace(
        parts=SimpleNamespace(plain=lambda side: plain),
        blocked=at_least(blocked, parts[0]),
        chosen=SimpleNamespace(blocked=left_out),
    )
    return cast("Detection", found)


@pytest.mark.parametrize(
    ("parts", "blocked", "few", "budget"),
    [
        ((17, 7), 17, True, False),
        ((17, 7), 12, True, True),
        ((42, 18), 42, True, False),
        ((42, 18), 30, False, True),
        ((45, 20), 45, False, False),
        ((45, 20), 44, False, True),
    ],
)
def test_few_prompts_or_a_small_budget(parts: tuple[int, int], blocked: int, few: bool, budget: bool) -> None:
    found = regions(parts, blocked)
    caution = few_prompts(SKILL, found)
    assert (caution is not None) is few and (blocks_little(SKILL, found) is not None) is budget
    if caution is not None:
        assert caution.message.startswith(f"{sum(parts)} forget prompts are few: {parts[1]} are reported on")
        assert "; 65 allow a --target-block-rate of 0.95" in caution.message
        assert caution.figures["best_promise"] == pytest.approx(0.1 ** (1 / parts[0]))
    assert few_prompts(SkillSettings(("f",), layer=1, alpha=0.4), found) is None


def test_forms_that_are_missed() -> None:
    shares = {"as given": 0.9, "typos": 0.45, "two in one": 0.1}
    caution = misses_forms(SKILL, regions((17, 7), 17, **shares))
    assert caution is not None and "2 forms" in caution.message and "typos (45%), two in one (10%)" in caution.message
    assert caution.figures["missed"] == ["typos", "two in one"] and "as given" not in caution.message
    assert misses_forms(SKILL, regions((17, 7), 17, typos=0.5)) is None
    # The forms of a packaged skill are not the user's to add to.
    assert misses_forms(SkillSettings(packaged=("maths",)), regions((17, 7), 17, **shares)) is None


@pytest.mark.parametrize(("words", "warned"), [(79, False), (84, True), (100, True)])
def test_words_that_tell_as_much(words: int, warned: bool) -> None:
    found = cast("Detection", SimpleNamespace(plain=rate(90, 100), words=rate(words, 100)))
    caution = reads_words(SKILL, found)
    assert (caution is not None) is warned
    if caution is not None:
        assert f"90 of 100 plain prompts of the report part are blocked, and {words} would be" in caution.message
