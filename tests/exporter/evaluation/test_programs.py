"""Programs that a model wrote: put together with their tests, and run in the sandbox."""

from __future__ import annotations

from typing import Any

import pytest

from exporter.evaluation import sandbox
from exporter.evaluation.generation import program_of, references_of
from exporter.evaluation.items import Item
from exporter.evaluation.metrics import code_of

MBPP = Item("mbpp", 1, {"text": "Add.", "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]})
HUMANEVAL = Item(
    "humaneval",
    1,
    {
        "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """The sum."""\n',
        "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
        "entry_point": "total",
    },
)


@pytest.mark.parametrize(
    ("item", "answer", "passed"),
    [
        (MBPP, "```python\ndef add(a, b):\n    return a + b\n```", True),
        (MBPP, "def add(a, b):\n    return a + b", True),
        (MBPP, "```python\ndef add(a, b):\n    return a - b\n```", False),
        (MBPP, "I cannot do that.", False),
        (MBPP, "import sys\nsys.exit(0)", False),
        (MBPP, "", False),
        (HUMANEVAL, "    return sum(xs)", True),
        (HUMANEVAL, "```python\ndef total(xs: List[int]) -> int:\n    return sum(xs)\n```", True),
        (HUMANEVAL, "```python\ndef total(xs: List[int]) -> int:\n    return len(xs)\n```", False),
        (HUMANEVAL, "```python\ndef check(candidate):\n    pass\n```", False),
    ],
)
def test_programs_pass_by_their_tests_alone(item: Item, answer: str, passed: bool) -> None:
    assert sandbox.run(program_of(item, code_of(answer))).passed is passed


def test_functions_that_come_with_the_prompt_are_there() -> None:
    """HumanEval 38: the function to be written undoes another one, which the tests call."""
    prompt = 'def double(x):\n    return 2 * x\n\n\ndef halve(x):\n    """Undoes double."""\n'
    test = "def check(candidate):\n    assert candidate(double(4)) == 4\n"
    item = Item("humaneval", 38, {"prompt": prompt, "test": test, "entry_point": "halve"})
    for answer in ("    return x // 2", "```python\ndef halve(x):\n    return x // 2\n```"):
        assert sandbox.run(program_of(item, code_of(answer))).passed


@pytest.mark.parametrize("item", [MBPP, HUMANEVAL])
def test_an_endless_loop_is_no_answer(item: Item) -> None:
    outcome = sandbox.run(program_of(item, "while True:\n    pass\n"), sandbox.Limits(seconds=1.0))
    assert not outcome.passed and outcome.reason == "timed out"


def test_setup_code_may_use_what_the_code_defines() -> None:
    item = Item("mbpp", 1, MBPP.fields | {"test_setup_code": "one = Number()", "test_list": ["assert one.value == 1"]})
    assert sandbox.run(program_of(item, "class Number:\n    value = 1")).passed


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("308", ["308"]),
        ({"text": ["308", "three hundred"], "answer_start": [1, 2]}, ["308", "three hundred"]),
        ([{"text": "308"}, "309"], ["308", "309"]),
    ],
)
def test_reference_answers_have_many_forms(answers: Any, expected: list[str]) -> None:
    assert references_of(answers) == expected
