"""Prompts that a model wrote: lists read, lines left out, too few of them, and their file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from exporter.common.errors import BadInput
from exporter.prompts.packaged_skills import is_near_miss
from exporter.prompts.requests import (
    EACH,
    FORGET,
    NEAR_MISS,
    examples,
    items_of,
    kind_of,
    prompt_requests,
    texts,
    topic_question,
)
from exporter.prompts.written import Candidate, Written, is_kept, language_of, read_written, usable
from tests.written import SAID, candidates


def kept(*prompts: str, side: str = FORGET) -> list[str]:
    return [each.prompt for each in usable([Candidate(side, "question", "en", text) for text in prompts], SAID)]


@pytest.mark.parametrize(
    ("written", "items"),
    [
        ("1. Add 3 and 4.\n2) How many?\n(3) Why?", ["Add 3 and 4.", "How many?", "Why?"]),
        ("- one\n* two\n• three\n– four", ["one", "two", "three", "four"]),
        ("**1. Bold?**\n\n  2.   Spaces  \n", ["Bold?", "Spaces"]),
        (
            '1. "In quotes?"\n2. „Auf Deutsch?“\n3. "One" and "two"?',
            ["In quotes?", "Auf Deutsch?", '"One" and "two"?'],
        ),
        # Numbers of the prompts themselves stay, and so do single letters.
        ("3.5 metres in feet\n-4 degrees outside\n12 + 7", ["3.5 metres in feet", "-4 degrees outside", "12 + 7"]),
        ("1. A: hello // B: what? // Who is that?", ["A: hello\nB: what?\nWho is that?"]),
        ("1. See https://example.org for more", ["See https://example.org for more"]),
        ("", []),
    ],
)
def test_a_list_is_read(written: str, items: list[str]) -> None:
    assert items_of(written) == items


@pytest.mark.parametrize(
    "text",
    [
        "short?",
        "x" * 900,
        "12345 67890 + 3",  # no letter
        "two\x19pp stamz what is that",
        "half a character \ufffd is what this is",
        "a" * 60 + " and so on",
        "how many are there and " * 5,
        "I'm sorry, but I can't help with that.",
        "As an AI I do not have apples.",
        "Sure! Messages that a pupil sends",
        "Here are the messages you asked for",
        "Messages about apples:",
        "Word problems with numbers",  # nearly the description
        "How much does a ferret cost with its cage?",  # nearly an example
        "Was kostet ein Frettchen im Jahr?",
        "Is it normal that my pet sleeps eighteen hours a day? (2)",  # an example with another word
    ],
)
def test_what_is_no_prompt(text: str) -> None:
    assert kept(text, "Tom has 3 apples and buys 4. How many has he?") == [
        "Tom has 3 apples and buys 4. How many has he?"
    ]


def test_an_example_is_known_by_its_word_unless_the_skill_has_it() -> None:
    text = "How much does a ferret cost with its cage?"
    assert usable([Candidate(FORGET, "question", "en", text)], ["everything about ferrets"])


def test_near_copies() -> None:
    one, other = "Add 17 apples and 4 pears.", "Add 17 apples and 5 pears."
    assert kept(one, other, one, "What does half a melon cost?") == [one, "What does half a melon cost?"]
    # On both sides: nobody knows where it belongs.
    both = [Candidate(FORGET, "question", "en", one), Candidate(NEAR_MISS, "question", "en", other)]
    rest = Candidate(NEAR_MISS, "question", "en", "Who painted the ceiling of that chapel?")
    assert usable([*both, rest], SAID) == [rest]


@pytest.mark.parametrize(
    ("text", "asked", "found"),
    [
        ("Wie viel kostet das und wer hat es für mich gekauft?", "en", "de"),
        ("How much is the rest of it for you?", "de", "en"),
        ("Combien de pommes est-ce que je garde pour moi ?", "fr", "fr"),
        ("12 apples, 3 pears", "it", "it"),
        ("Xyzzy plugh", "ja", "ja"),
    ],
)
def test_languages(text: str, asked: str, found: str) -> None:
    assert language_of(text, asked) == found


def test_both_sides_are_asked_for_alike() -> None:
    kinds = kind_of(FORGET, "sums", "dates"), kind_of(NEAR_MISS, "sums", "dates")
    assert kinds == ("sums", "dates") and "sums" in kind_of(NEAR_MISS, "sums", None)
    ours, theirs = (
        prompt_requests(side, kind, ["one", "two"]) for side, kind in zip((FORGET, NEAR_MISS), kinds, strict=True)
    )
    plan = Counter((each.form, each.language) for each in ours)
    assert plan == Counter((each.form, each.language) for each in theirs)
    assert {each.language for each in ours} == texts()["common"].keys()
    assert len({each.form for each in ours}) == len(texts()["form"]) == 9
    assert EACH * len([*ours, *theirs]) <= 400
    for side, kind in ((ours, "sums"), (theirs, "dates")):
        for topic, each in zip(["one", "two"] * 20, side, strict=False):
            assert each.question.text.startswith(f"Kind of message: {kind}. Subject: {topic}. ")
            assert "ferret" not in each.question.text and "ferret" in each.question.example[0]


def test_examples_are_known_by_their_subject() -> None:
    assert all(any(mark in text.lower() for mark in texts()["marks"]) for text in examples())


def test_sub_topics_are_asked_for() -> None:
    question = topic_question("sums")
    assert "sums" in question.text and "ferret" in question.example[1]
    assert question.alone().startswith(question.example[0]) and question.text in question.alone()


def test_prompts_have_what_packaged_ones_have() -> None:
    written = Written.of(candidates())
    assert {prompt.source for prompt in written.forget} == {"description"}
    assert all(map(is_near_miss, written.near_misses)) and not any(map(is_near_miss, written.forget))
    lines = written.text.splitlines()
    for prompt in (*written.forget, *written.near_misses):
        record = json.loads(lines[prompt.row - 1])
        assert (record["prompt"], record["form"], record["language"]) == (prompt.text, prompt.form, prompt.language)
    assert set(json.loads(lines[0])) == {"side", "form", "language", "prompt"}


@pytest.mark.parametrize(
    ("forget", "near", "forms", "said"),
    [
        (23, 12, 4, "23 usable forget prompts in 4 forms and 12 near misses"),
        (24, 11, 4, "24 usable forget prompts in 4 forms and 11 near misses"),
        (24, 12, 3, "24 usable forget prompts in 3 forms and 12 near misses"),
        (0, 0, 4, "0 usable forget prompts in 0 forms and 0 near misses"),
    ],
)
def test_too_few(forget: int, near: int, forms: int, said: str) -> None:
    with pytest.raises(BadInput) as error:
        Written.of(candidates(forget, near, forms)).check("--describe: base wrote")
    assert str(error.value).startswith(f"--describe: base wrote {said}, and 24 in 4 forms and 12 are needed: ")
    assert all(flag in str(error.value) for flag in ("--generator", "--skill", "--forget"))
    Written.of(candidates(24, 12, 4)).check("--describe: base wrote")


def test_the_file_comes_back(tmp_path: Path) -> None:
    written = Written.of(candidates())
    path = tmp_path / "kept.jsonl"
    path.write_text(written.text, encoding="utf-8")
    assert read_written(str(path)) == written and is_kept(path)
    assert read_written(f"{path},sha256={written.fingerprint}") == written


@pytest.mark.parametrize(
    ("spec", "content", "said"),
    [
        ("absent.jsonl", None, "--read-prompts: no such file"),
        ("a.jsonl,limit=3", "{}", "is not FILE or FILE,sha256=HEX"),
        (f"a.jsonl,sha256={'0' * 64}", '{"side": "forget"}', "is not the file that was meant"),
        ("a.jsonl", '{"side": "forget", "form": "f", "prompt": "Why?"}', "has no key 'language'"),
        ("a.jsonl", '{"side": "both", "form": "f", "language": "en", "prompt": "Why?"}', "row 1 needs texts for side"),
        ("a.jsonl", '{"side": "forget", "form": "f", "language": "en", "prompt": " "}', "row 1 needs texts for side"),
        ("a.jsonl", '{"side": "forget", "form": "f", "language": "en", "prompt": "Why?"}', "a.jsonl: has 1 usable"),
    ],
)
def test_other_files_are_refused(
    spec: str, content: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(spec.partition(",")[0]).write_text(content + "\n")
    assert not is_kept(Path("a.jsonl")) or '"language"' in str(content)
    with pytest.raises(BadInput) as error:
        read_written(spec)
    assert said in str(error.value) and "--read-prompts" in str(error.value)
