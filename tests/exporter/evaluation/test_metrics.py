"""Metrics of written answers, against the definitions of GSM8K, SQuAD and MLQA."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.evaluation.metrics import code_of, exact_match, f1, last_number, normalised


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "18"),
        ("The answer is $1,234.50.", "1234.5"),
        ("It is -3.0 degrees", "-3"),
        ("about .5 litres", "0.5"),
        ("007 agents", "7"),
        ("-0", "0"),
        ("$10", "10"),
        ("none at all", None),
        ("", None),
        ("It is 5. And then 70,000.", "70000"),
    ],
)
def test_last_number(answer: str, number: str | None) -> None:
    assert last_number(answer) == number


@given(st.integers(-(10**9), 10**9), st.text(alphabet="abc .,$\n", max_size=20))
def test_a_number_is_found_however_it_is_written(number: int, before: str) -> None:
    said = before.rstrip("-$.,") + " "
    assert last_number(f"{said}{number:,}.") == last_number(f"{said}{number}") == str(number)


def test_answers_are_compared_as_squad_does() -> None:
    assert normalised("The  Panthers' defense!") == "panthers defense"
    assert exact_match("an Apple.", ["pear", "Apple"])
    assert not exact_match("apples", ["apple"])
    assert f1("Denver Broncos team", ["the Denver Broncos", "Broncos"]) == pytest.approx(0.8)
    assert f1("nothing alike", ["Broncos"]) == 0.0
    assert f1("", ["Broncos"]) == 0.0


def test_f1_counts_characters_where_there_are_no_spaces() -> None:
    assert f1("丹佛野马", ["丹佛野马队"]) == pytest.approx(2 * 1.0 * 0.8 / 1.8)
    assert exact_match("«Denver»", ["Denver"])


@given(st.text(max_size=40), st.lists(st.text(max_size=40), min_size=1, max_size=3))
def test_f1_is_a_share_and_one_for_the_same_words(answer: str, references: list[str]) -> None:
    assert 0.0 <= f1(answer, references) <= 1.0
    assert f1(references[0], references) == 1.0
    if exact_match(answer, references):
        assert f1(answer, references) == 1.0


def test_code_is_taken_out_of_an_answer() -> None:
    assert code_of("Here it is:\n```python\ndef f():\n    return 1\n```\nIt works.") == "def f():\n    return 1"
    assert code_of("def f():\n    return 1") == "def f():\n    return 1"
    assert code_of("```\nx = 1\n") == "x = 1\n"  # cut off by the length
    assert code_of("```python\na = 1\n```\nand\n```python\nb = 2\n```") == "a = 1"
