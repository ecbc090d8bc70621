"""Frames of prompts: what is found, what it is put around, and whose they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.prompts.frames import AT_LEAST, Frame, frame_of, frames_lacked, pieces
from exporter.prompts.sources import Prompt

QUESTIONS = [
    "Why do cats purr?",
    "Is 7 a prime number?",
    "Name a river in Peru.",
    "How far is the moon",
    "Who wrote Emma?",
    "Can bees see red?",
    "List two nuts.",
    "Was Bach deaf?",
    "Tell me about tin!",
    "Does ice float?",
    "My cat is ill, help",
    "Explain rain.",
]


def prompts(texts: list[str], source: str = "s") -> list[Prompt]:
    return [Prompt(text, source, row) for row, text in enumerate(texts, start=1)]


BARE = prompts(["see"], "retain")
"""Lacks every frame."""


def test_pieces_are_whole_words() -> None:
    assert pieces("Q 12: don't, नमस्ते 你好") == (
        "Q",
        " ",
        "12",
        ":",
        " ",
        "don",
        "'",
        "t",
        ",",
        " ",
        "नमस्ते",
        " ",
        "你",
        "好",
    )


@given(st.text())
def test_pieces_lose_nothing(text: str) -> None:
    assert "".join(pieces(text)) == text


@pytest.mark.parametrize(
    ("template", "start", "end"),
    [
        ("Question: {}\nAnswer:", "Question: ", "\nAnswer:"),
        ("{} Think, then answer.", "", " Think, then answer."),
        ("请翻译{}。", "请翻译", "。"),
        ("{}", "", ""),
    ],
)
def test_a_template_is_found(template: str, start: str, end: str) -> None:
    frame = frame_of([template.replace("{}", question) for question in QUESTIONS])
    assert ("".join(frame.start), "".join(frame.end)) == (start, end)


def test_half_a_word_is_no_frame() -> None:
    # All begin with "un" and end with "ing".
    assert not frame_of([f"un{letter}ing" for letter in "abcdefghijkl"])


def test_an_odd_row_does_not_hide_a_frame() -> None:
    texts = [f"Question: {question}" for question in QUESTIONS[:11]]
    assert "".join(frame_of([*texts, "Something else."]).start) == "Question: "
    assert not frame_of([*texts, "Something else.", "And more", "and yet another one"])


def test_a_question_mark_alone() -> None:
    texts = [text.rstrip("?.!") + "?" for text in QUESTIONS]
    frame = frame_of(texts)
    assert frame == Frame(end=("?",))
    assert frame.put("Explain rain.", Frame()) == "Explain rain?" == frame.put("Explain rain?", Frame())
    assert Frame(end=("\n", "A", ":")).put("Explain rain.", Frame()) == "Explain rain.\nA:"


words = st.text("abcdefgh", min_size=1, max_size=6)
bodies = st.lists(words, min_size=1, max_size=5).map(" ".join)


@given(st.lists(bodies, min_size=AT_LEAST, unique=True), st.lists(words, min_size=1, max_size=4), words, bodies)
def test_any_frame_around_any_prompts_is_found(inner: list[str], start: list[str], end: str, other: str) -> None:
    texts = [f"{' '.join(start)}: {body}\n{end}" for body in inner]
    frame = frame_of(texts)
    assert "".join(frame.start).startswith(" ".join(start) + ": ") and "".join(frame.end).endswith("\n" + end)
    assert frame == frame_of(texts[::-1])
    assert sum(map(frame.holds, texts)) >= 0.8 * len(texts)
    framed = frame.put(other, Frame())
    assert frame.holds(framed) and frame.put(framed, Frame()) == framed


def test_a_prompt_leaves_its_own_frame_for_another() -> None:
    ours, theirs = Frame(("Q", ":", " "), ("\n", "A", ":")), Frame(("Task", ":", " "), ("\n", "Code", ":"))
    assert ours.put("Task: sort a list\nCode:", theirs) == "Q: sort a list\nA:"
    # Only on the sides that the other has, and nothing twice.
    assert Frame(end=("?",)).put("Task: sort a list.", Frame(theirs.start, (".",))) == "Task: sort a list?"
    longer = Frame(("Q", ":", " ", "Solve", " "))
    assert longer.put("Q: sort a list", Frame(("Q", ":", " "))) == "Q: Solve sort a list"


def test_each_source_has_its_own() -> None:
    one = prompts([f"Q: {text}" for text in QUESTIONS], "one")
    two = prompts([f"{text} Be brief" for text in QUESTIONS], "two")
    same = prompts([f"Q: {text} really" for text in QUESTIONS[:1]] + [f"Q: {text}" for text in QUESTIONS], "same")
    found = {each.sources: each for each in frames_lacked([*one, *two, *same], BARE)}
    assert set(found) == {("one", "same"), ("two",)}
    assert (found["one", "same"].having, found["one", "same"].prompts) == (25, 25)
    assert not frames_lacked(prompts(QUESTIONS), BARE)


def test_small_sources_are_looked_at_together() -> None:
    few = [Prompt(f"Q: {text}", f"file {number}", 1) for number, text in enumerate(QUESTIONS)]
    (found,) = frames_lacked(few, BARE)
    assert len(found.sources) == 12 and found.frame == Frame(("Q", ":", " "))
    assert not frames_lacked(few[: AT_LEAST - 1], BARE)


def test_what_most_retain_prompts_have_too_is_no_frame() -> None:
    forget = prompts([f"Q: {text}\nA:" for text in QUESTIONS])
    bare = prompts([f"Write about {text}" for text in QUESTIONS], "r")
    begun = prompts([f"Q: write about {text}" for text in QUESTIONS], "r")
    (found,) = frames_lacked(forget, bare)
    assert found.frame == Frame(("Q", ":", " "), ("\n", "A", ":")) and (found.having, found.prompts) == (12, 12)
    (found,) = frames_lacked(forget, begun)
    assert found.frame == Frame(end=("\n", "A", ":"))
    assert not list(frames_lacked(forget, prompts([f"Q: see {text}\nA:" for text in QUESTIONS], "r")))
    # More than half of them is most.
    assert [each.frame.start for each in frames_lacked(forget, [*bare[:6], *begun[:5]])] == [("Q", ":", " ")]
    assert [each.frame.start for each in frames_lacked(forget, [*bare[:5], *begun[:6]])] == [()]
    # Without any there is nothing to tell apart.
    assert not list(frames_lacked(forget, []))
