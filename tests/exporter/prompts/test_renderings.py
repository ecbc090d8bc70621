"""Renderings: the same request in other forms, drawn from its text and the seed, in the part of its prompt."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.prompts.formats import PLAIN, Formatter
from exporter.prompts.region_parts import RENDERED_EVERY, make_parts
from exporter.prompts.renderings import FORMS, Draw, group_of, last_sentence, misspelt, rendered
from exporter.prompts.sources import Prompt
from exporter.prompts.turns import FIT, RENDERED, REPORT, Said, Turns, deal
from exporter.recipes.effort import EFFORTS
from tests.exporter.prompts.test_formats import CHAT, tokenizer

PARTS = FIT, REPORT
TEXTS = st.lists(st.text(max_size=80).filter(str.strip), min_size=1, max_size=12, unique=True)
SUM = "Ann has 3.5 pounds of pears, and Tom (her brother) has 2. How many pounds do they have altogether?"


def as_prompts(texts: list[str]) -> list[Prompt]:
    return [Prompt(text, "mine.txt", row) for row, text in enumerate(texts, start=1)]


def draw(text: str, *others: str) -> Draw:
    return Draw(text, 0, FIT, others)


@settings(deadline=None, database=None)
@given(texts=TEXTS, seed=st.integers(0, 2**63), part=st.sampled_from(PARTS), most=st.integers(1, len(FORMS)))
def test_every_rendering_is_another_text_of_its_prompt(texts: list[str], seed: int, part: str, most: int) -> None:
    prompts, taken = as_prompts(texts), set(texts)
    found = rendered(prompts, part, seed, taken, most)
    assert found == rendered(prompts, part, seed, set(texts), most)
    assert len({each.text for each in found}) == len(found) and taken == {*texts, *(each.text for each in found)}
    for each in found:
        assert each.text.strip() and each.text not in texts
        assert each.given in prompts and (each.source, each.row) == (each.given.source, each.given.row)
        assert each.form in FORMS and group_of(each) == group_of(each.given)
    assert all(count == 1 for count in Counter((each.row, each.form) for each in found).values())
    # A greeting can always stand before it.
    assert {each.row for each in found} == {prompt.row for prompt in prompts}
    assert all(count <= most for count in Counter(each.row for each in found).values())


@settings(deadline=None, database=None)
@given(word=st.text(alphabet="abcdeäßжは", min_size=4, max_size=12), number=st.integers(0, 2**64))
def test_a_misspelt_word_is_another_word(word: str, number: int) -> None:
    wrong = misspelt(word, number)
    assert wrong != word and abs(len(wrong) - len(word)) <= 1 and wrong[0] == word[0]


def test_forms() -> None:
    assert FORMS["lower case"](draw(SUM)) == (
        "ann has 3.5 pounds of pears and tom (her brother) has 2 how many pounds do they have altogether"
    )
    assert FORMS["last sentence"](draw(SUM)) == "How many pounds do they have altogether?"
    assert FORMS["greeting before"](draw(SUM)).endswith(f" {SUM}")
    assert FORMS["instruction after"](draw(SUM)).startswith(f"{SUM} ")
    assert SUM in FORMS["two in one"](draw(SUM, "And 4 + 5?")) and "And 4 + 5?" in FORMS["two in one"](
        draw(SUM, "And 4 + 5?")
    )
    assert not FORMS["two in one"](draw(SUM))
    wrong = FORMS["typos"](draw(SUM)).split()
    assert sum(one != other for one, other in zip(SUM.split(), wrong, strict=True)) == 2
    assert FORMS["typos"](draw("3 + 4 = ?")) == "3 + 4 = ?" and FORMS["lower case"](draw("why")) == "why"


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("What does Mr. Smith pay for 3.5 pounds?", ""),
        ("Add up all of these numbers. Thanks!", ""),
        ("Add these:\n3 and 4 and 5 and 6 and 7", "3 and 4 and 5 and 6 and 7"),
        (
            "我有三个苹果。又买了五个苹果以后我一共有多少个苹果呢请你告诉我吧？",
            "又买了五个苹果以后我一共有多少个苹果呢请你告诉我吧？",
        ),
    ],
)
def test_last_sentences(text: str, last: str) -> None:
    assert last_sentence(draw(text)) == last


def test_parts_share_no_phrase() -> None:
    texts = {part: set[str]() for part in PARTS}
    for part, found in texts.items():
        for seed in range(40):
            found.update(each.text for each in rendered(as_prompts(["x"]), part, seed, set(), len(FORMS)))
    assert all(len(each) > 4 for each in texts.values())
    assert not texts[FIT] & texts[REPORT]


def test_renderings_stay_in_the_part_of_their_prompt_and_are_no_prompts() -> None:
    own = [Prompt(SUM.replace("3.5", f"{row}"), "mine.txt", row) for row in range(2, 26)]
    packaged = [Prompt(f"What is {row} plus {row}?", "maths", row, form="terse") for row in range(10)]
    others = [Prompt(f"Tell me a story about number {row}.", "everyday", row, kind="story") for row in range(30)]
    near = [Prompt(f"Spell {row} for me.", "maths near misses", row, form="terse") for row in range(30)]
    turns = Turns(Formatter(tokenizer(CHAT), seed=0), Said("No."), 0, None)
    forget, retain = deal([*own, *packaged], 0), deal([*others, *near], 0)
    parts = make_parts(forget, retain, turns, 0, EFFORTS["thorough"])
    assert sum(len(each) for each in parts.plain("asked").values()) == 34
    seen: set[str] = set()
    for name, most in ((FIT, len(FORMS)), (REPORT, 1)):
        part = getattr(parts, name)
        asked, answered = ([q.prompt for q in side if q.format == RENDERED] for side in (part.asked, part.answered))
        dealt = {(each.source, each.row) for each in (*forget[name], *retain[name])}
        assert asked and {(each.source, each.row) for each in (*asked, *answered)} <= dealt
        assert {each.source for each in asked} == {"mine.txt"} and {each.source for each in answered} == {"everyday"}
        texts = {each.text for each in (*asked, *answered)}
        assert len(texts) == len(asked) + len(answered) and not texts & seen
        seen |= texts
        by_prompt = Counter(each.given for each in asked)
        assert len(by_prompt) == sum(each.source == "mine.txt" for each in forget[name])
        # All ask the same at last: only the first can have that sentence for itself.
        assert max(by_prompt.values()) <= most and min(by_prompt.values()) >= min(most, 4)
        assert len(answered) == -(-sum(each.source == "everyday" for each in retain[name]) // RENDERED_EVERY)
        assert {q.prompt.form for q in part.asked if q.format == PLAIN} == {"as given", "terse"}


def test_packaged_skills_alone_are_not_rendered() -> None:
    forget = [Prompt(f"What is {row} plus {row}?", "maths", row, form="terse") for row in range(40)]
    retain = [Prompt(f"Tell me a story about number {row}.", "everyday", row, kind="story") for row in range(30)]
    turns = Turns(Formatter(tokenizer(CHAT)), Said("No."), 0, None)
    parts = make_parts(deal(forget, 0), deal(retain, 0), turns, 0, EFFORTS["thorough"])
    assert all(query.format != RENDERED for part in (parts.fit, parts.report) for query in part.asked)
    assert all(query.format != RENDERED for query in parts.fit.answered)
