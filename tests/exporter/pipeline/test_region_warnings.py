"""Warnings about regions along discriminants: few prompts, small budgets, forms and turns that are missed, words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from exporter.common.rates import rate
from exporter.methods.key_space.budget import at_least, at_most
from exporter.methods.key_space.detection import Detection
from exporter.pipeline.region_warnings import (
    blocks_little,
    few_harmless,
    few_prompts,
    misses_forms,
    misses_turns,
    of_regions,
    one_source,
    reads_words,
)
from exporter.prompts.formats import Query
from exporter.prompts.region_parts import Part
from exporter.prompts.sources import Prompt
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


@pytest.mark.parametrize(
    ("settings", "sources", "warned"),
    [
        ({"forget": ("f",)}, "aaa", True),
        ({"forget": ("f", "g")}, "aab", False),
        ({"forget": ("f",), "packaged": ("maths",)}, "aaa", False),
        ({"describe": "sums"}, "aaa", False),
    ],
)
def test_prompts_of_one_source_alone(settings: dict[str, Any], sources: str, warned: bool) -> None:
    asked = tuple(Query(Prompt("x", f"{name}.jsonl", row), "plain", (row,)) for row, name in enumerate(sources))
    found = cast("Detection", SimpleNamespace(parts=SimpleNamespace(fit=Part(asked, (), ()))))
    caution = one_source(SkillSettings(**settings), found)
    assert (caution is not None) is warned
    if caution is not None:
        assert "all forget prompts are of a.jsonl:" in caution.message and caution.figures == {"source": "a.jsonl"}


def harmless(hits: int, total: int, places: int, full: bool = False) -> Detection:
    """Of the fit part's prompts that are to be answered, so many inside. full: as many queries as may be."""
    answered = range(4 if full else 3)
    found = SimpleNamespace(
        false_blocks=at_most(hits, total, places),
        regions=SimpleNamespace(places=range(places)),
        parts=SimpleNamespace(fit=Part((), answered, ()), effort=SimpleNamespace(fit=(9, 4, 9))),
    )
    return cast("Detection", found)


@pytest.mark.parametrize(
    ("hits", "total", "places", "budget", "fires"),
    [
        (0, 229, 1, 0.01, True),
        (0, 230, 1, 0.01, False),
        (0, 230, 3, 0.01, True),
        (1, 229, 1, 0.01, False),  # one is inside: the bound is wide for another reason
        (0, 70, 1, 0.1, False),
        (0, 70, 1, 0, False),
    ],
)
def test_few_harmless_prompts(hits: int, total: int, places: int, budget: float, fires: bool) -> None:
    skill, found = SkillSettings(("f",), ("r",), max_false_block=budget), harmless(hits, total, places)
    caution = few_harmless(skill, found)
    assert (caution is not None) is fires
    if caution is not None:
        needed = caution.figures["prompts_needed"]
        assert few_harmless(skill, harmless(0, needed, places)) is None
        assert few_harmless(skill, harmless(0, needed - 1, places)) is not None
        assert f"none of the {total} prompts" in caution.message and f"{needed} would be needed" in caution.message
        assert (
            f"at most {at_most(0, total, places).bound:.2%}" in caution.message and "--effort" not in caution.message
        )
        # Seven of ten prompts fall to the fit part.
        more = int(caution.message.split("give ")[1].split()[0])
        assert more * 7 // 10 >= needed - total > (more - 1) * 7 // 10
        given = SkillSettings(("f",), ("r",), layer=1, alpha=0.4, max_false_block=budget)
        assert few_harmless(given, found) is None


def test_more_prompts_are_of_no_use_where_no_more_are_looked_at() -> None:
    caution = few_harmless(SKILL, harmless(0, 100, 1, full=True))
    assert caution is not None and "--effort" in caution.message and "give" not in caution.message


def turns(**counts: tuple[int, int]) -> Detection:
    """Forget prompts of the report part, so many blocked of so many, by kind of turn."""
    hits = [(name, row < hit) for name, (hit, total) in counts.items() for row in range(total)]
    asked = tuple(Query(Prompt(str(row), "f", row), name, (row,)) for row, (name, _) in enumerate(hits))
    scores = torch.tensor([0.0 if hit else 1.0 for _, hit in hits])
    found = SimpleNamespace(
        scores={"report": SimpleNamespace(asked=scores)},
        report=Part(asked, (), ()),
        phrases=dict.fromkeys(counts, 1),
        threshold=0.5,
    )
    found.rates = lambda *about: Detection.rates(cast("Detection", found), *about)
    return cast("Detection", found)


def test_kinds_of_turn_that_are_missed() -> None:
    caution = misses_turns(SKILL, turns(plain=(0, 20), rendered=(0, 20), deep=(1, 5), system=(2, 8), prefill=(0, 4)))
    assert caution is not None and "1 kind of turn: deep (1 of 5);" in caution.message
    assert caution.figures["missed"].keys() == {"deep"} and caution.code == "turns"
    caution = misses_turns(SKILL, turns(buried=(0, 9), insisting=(12, 49), deep=(5, 5)))
    assert caution is not None and "2 kinds of turn: buried (0 of 9), insisting (12 of 49);" in caution.message
    assert misses_turns(SKILL, turns(plain=(0, 20))) is None and misses_turns(SKILL, turns(deep=(9, 9))) is None


def test_all_are_looked_for() -> None:
    about = vars(regions((17, 7), 12, typos=0.1)) | vars(turns(deep=(0, 5)))
    about["parts"].fit = Part((Query(Prompt("x", "f", 0), "plain", (0,)),), (), ())
    about["parts"].effort = SimpleNamespace(fit=(9, 4, 9))
    about |= {"false_blocks": at_most(0, 100), "regions": SimpleNamespace(places=("prompt",))}
    about |= {"plain": rate(5, 7), "words": rate(5, 7), "uncovered": ("begun answer",)}
    found = of_regions(SKILL, cast("Detection", SimpleNamespace(**about)))
    codes = ["few-prompts", "blocked", "few-harmless", "one-source", "forms", "uncovered", "turns", "words"]
    assert [each and each.code for each in found] == codes


@pytest.mark.parametrize(("words", "warned"), [(79, False), (84, True), (100, True)])
def test_words_that_tell_as_much(words: int, warned: bool) -> None:
    found = cast("Detection", SimpleNamespace(plain=rate(90, 100), words=rate(words, 100)))
    caution = reads_words(SKILL, found)
    assert (caution is not None) is warned
    if caution is not None:
        assert f"90 of 100 plain prompts of the report part are blocked, and {words} would be" in caution.message
