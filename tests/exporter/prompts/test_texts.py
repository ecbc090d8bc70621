"""Texts of both sides: disjoint parts, the same fit part for every method, prompt and answer in one."""

from __future__ import annotations

import pytest

from exporter.common.errors import BadInput
from exporter.prompts.sources import Prompt
from exporter.prompts.splits import split_forget, split_retain
from exporter.prompts.texts import TEXT_TOKENS, answer_starts, as_texts, forget_texts, retain_texts
from tests.tiny import tiny_tokenizer

PROMPTS = [Prompt(f"prompt {number}", "source", number) for number in range(200)]


@pytest.mark.parametrize("calibrated", [True, False])
def test_parts_are_disjoint_and_the_fit_is_the_same(calibrated: bool) -> None:
    forget, retain = split_forget(PROMPTS, 0), split_retain(PROMPTS, 0)
    for parts in (forget_texts(forget, calibrated), retain_texts(retain, calibrated)):
        everything = [*parts["fit"], *parts["choose"], *parts["report"]]
        assert len(set(everything)) == len(everything) == (120 if calibrated and parts["fit"] == forget.fit else 200)
    assert forget_texts(forget, calibrated)["fit"] == forget.fit
    assert set(retain_texts(retain, calibrated)["fit"]) < set(retain.choose)
    assert retain_texts(retain, calibrated)["fit"] == retain_texts(retain, not calibrated)["fit"]


def test_what_hypercubes_are_judged_on_is_left_alone() -> None:
    forget, retain = split_forget(PROMPTS, 0), split_retain(PROMPTS, 0)
    ours, others = forget_texts(forget, True), retain_texts(retain, True)
    assert not set(forget.calibrate) & {*ours["fit"], *ours["choose"], *ours["report"]}
    assert others["report"] == retain.report


def test_prompt_line_break_answer() -> None:
    tokenizer = tiny_tokenizer()
    prompts = [
        Prompt("How many?", "source", 1, answer="Two."),
        Prompt("How many?", "source", 2),
        Prompt("word " * 500, "source", 3),
        Prompt("a", "source", 4),
    ]
    queries = as_texts(tokenizer, prompts, "--forget", None)
    assert tokenizer.decode(queries[0].ids) == "How many?\nTwo."
    assert tokenizer.decode(queries[1].ids) == "How many?"
    assert [len(query.ids) for query in queries[2:]] == [TEXT_TOKENS]  # and "a", of one token, is none
    assert len(as_texts(tokenizer, prompts[2:3], "--forget", 20)[0].ids) == 20
    with pytest.raises(BadInput, match="--retain"):
        as_texts(tokenizer, prompts[3:], "--retain", None)


def test_answers_start_after_the_line_break() -> None:
    tokenizer = tiny_tokenizer()
    prompts = [
        Prompt("How many?", "source", 1, answer="Two."),
        Prompt("How many?", "source", 2),
        Prompt("word " * 500, "source", 3, answer="beyond what is read"),
    ]
    queries = as_texts(tokenizer, prompts, "--forget", None)
    starts = answer_starts(tokenizer, queries)
    assert tokenizer.decode(queries[0].ids[starts[0] :]) == "Two."
    assert starts[1:] == [len(queries[1].ids), TEXT_TOKENS]
