"""Prompts that are nearly the same: by what they may differ, and the same pairs as by comparing all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.prompts.overlap import SIMILAR, compare, jaccard, near_duplicates, words
from exporter.prompts.sources import Prompt

TEXT = "Maria bakes 24 rolls in the morning and sells 19 of them before noon. How many are left over?"


def prompts(texts: list[str], source: str = "s") -> list[Prompt]:
    return [Prompt(text, source, row) for row, text in enumerate(texts, start=1)]


@pytest.mark.parametrize(
    "other",
    [
        TEXT.upper(),
        TEXT.replace("24", "240").replace("19", "7"),
        TEXT.replace(".", " -").replace("?", ""),
        TEXT.replace("Maria", "Tom"),
        "  " + TEXT.replace(" ", "\n"),
        TEXT.replace("Maria", "Ｍａｒｉａ"),
    ],
)
def test_near_duplicates(other: str) -> None:
    (match,) = compare(prompts(["Name a river.", TEXT]), prompts(["Write a poem about rolls in the morning.", other]))
    assert (match.one, match.other) == (1, 1) and match.similarity >= SIMILAR


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TEXT, "Maria sells books in the morning and tea before noon. How many people does she meet?"),
        ("What is the capital of France?", "What is the capital city of Spain and of Italy?"),
        ("12 + 7", "3 * 4"),  # numbers are all there is
        ("that that that that is", "that is"),
        ("?", "!"),
    ],
)
def test_others(one: str, other: str) -> None:
    assert not compare(prompts([one]), prompts([other]))


def test_numbers_do_not_matter_beside_words() -> None:
    assert compare(prompts(["Please add 12, 7 and 30 to 45"]), prompts(["Please add 1, 99 and 4 to 2"]))


def test_a_frame_of_both_sets_says_nothing() -> None:
    frame = "Read the question with care, think about it step by step, and give the answer in one line. Question: {}"
    inner = ["cats", "the moon", "seven rivers", "old songs", "bread", "tin", "ice cream", "bees", "rain", "Emma"]
    ones = [frame.replace("{}", text) for text in inner]
    others = [frame.replace("{}", text) for text in ("dogs", "Mars", "two lakes", "poems", "rolls", "lead", "snow")]
    others += [frame.replace("{}", text) for text in ("wasps", "fog", "EMMA!")]
    (match,) = compare(prompts(ones), prompts(others, "r"))
    assert (match.one, match.other, match.similarity) == (9, 9, 1.0)
    # In a frame that the other set has not, the same words are another task.
    assert not compare(prompts(ones), prompts([f"Translate: {text}" for text in inner], "r"))


bag = st.lists(st.sampled_from("abcdefg"), max_size=9).map(lambda each: words(" ".join(each)))
sets = st.lists(bag, max_size=12)


@given(sets, sets)
def test_the_same_as_comparing_all(ones: list[frozenset], others: list[frozenset]) -> None:
    def nearest(row: frozenset) -> tuple[float, int]:
        return max(((jaccard(one, row), -place) for place, one in enumerate(ones) if one), default=(0.0, 0))

    expected = [(place, *nearest(row)) for place, row in enumerate(others) if row]
    found = [(match.other, match.similarity, -match.one) for match in near_duplicates(ones, others)]
    assert found == [each for each in expected if each[1] >= SIMILAR]
    # Both sides see the same pairs.
    theirs = {match.one for match in near_duplicates(others, ones)}
    assert theirs <= {match.other for match in near_duplicates(ones, others)}
