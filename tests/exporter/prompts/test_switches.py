"""States of a chat template: which arguments it has, and which of them change what follows the last user message."""

from __future__ import annotations

import pytest

from exporter.common.errors import BadInput
from exporter.prompts.formats import PLAIN, Formatter
from exporter.prompts.sources import Prompt
from exporter.prompts.switches import State, arguments_of
from exporter.prompts.turns import FIT, INSISTING, PROMPT, REPORT, Said, Turns, some
from tests.exporter.prompts.test_formats import CHAT, tokenizer

END = "{% if add_generation_prompt %}<|assistant|>"
OFF = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
SWITCHED = CHAT.replace(END, END + OFF)
EFFORT = CHAT.replace(
    END,
    END
    + "{% set effort = reasoning_effort | default('medium') %}{% if effort != 'medium' %}<{{ effort }}>{% endif %}"
    + "{% if reasoning_effort in ['low', 'high'] %}!{% endif %}{% if style == 3 %}3{% elif 4 == style %}4{% endif %}",
)


def states(template: str, given: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """Formats that are states, and notes."""
    formatter = Formatter(tokenizer(template), seed=0, states=[State.given(text) for text in given])
    assert set(formatter.states) <= set(formatter.formats_used)
    return list(formatter.states), formatter.notes


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHAT, []),
        (SWITCHED, ['{"enable_thinking": false}']),
        # On by default, and off where the argument is a truth value of another kind.
        (CHAT.replace(END, END + "{% if not (thinking | default(true)) %}<off>{% endif %}"), ['{"thinking": false}']),
        (CHAT.replace(END, END + "{% if thinking is true %}<think>{% endif %}"), ['{"thinking": true}']),
        # What changes only what stands before the message is a system prompt like others.
        ("{% if mode == 'short' %}Be short. {% endif %}" + CHAT, []),
        # Names that the template sets itself are none of the caller's.
        (CHAT.replace(END, END + "{% set own = true %}{% if own %}<own>{% endif %}"), []),
        (CHAT.replace(END, "{% generation %}{% endgeneration %}" + END + OFF), ['{"enable_thinking": false}']),
    ],
)
def test_a_state_changes_what_follows_the_last_message(template: str, expected: list[str]) -> None:
    assert states(template) == (expected, [])


def test_constants_that_a_template_compares_with_are_tried() -> None:
    found = arguments_of(EFFORT)
    assert found["style"] == [True, False, 3, 4]
    assert set(found["reasoning_effort"]) == {True, False, "medium", "low", "high"}
    used, notes = states(EFFORT)
    assert len(used) == 4 and '{"reasoning_effort": "low"}' in used
    (note,) = notes
    assert '"style": 4' in note and "not looked at" in note


def test_states_of_the_users_come_first() -> None:
    given = '{"style": 4, "reasoning_effort": "low"}'
    assert states(EFFORT, (given,))[0][0] == given


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"enable_thinking": NaN}', "is not JSON"),
        ("[1]", "no JSON object"),
        ("{}", "no JSON object"),
        ('{"thinking": true}', "has no argument 'thinking'; it has enable_thinking"),
    ],
)
def test_what_is_no_state_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        states(SWITCHED, (text,))


@pytest.mark.parametrize("text", ['{"thinking": true}', '{"chat_template": "{{ 1 / 0 }}"}', '{"tokenize": true}'])
def test_only_arguments_of_the_template_make_a_state(text: str) -> None:
    with pytest.raises(BadInput, match=r"has no argument '\w+'; it has enable_thinking"):
        Formatter(tokenizer(SWITCHED), formats=PLAIN, state=State.given(text))


@pytest.mark.parametrize("fault", ["1 / 0", "messages[9].content.x", "{}['a'].b", "(none).x.y"])
def test_a_template_may_raise_anything(fault: str) -> None:
    with pytest.raises(BadInput, match="chat template cannot format a single user message"):
        Formatter(tokenizer("{{ " + fault + " }}"))


def test_prompts_are_in_the_state_that_is_given() -> None:
    formatter = Formatter(tokenizer(SWITCHED), formats=PLAIN, state=State.given('{"enable_thinking": false}'))
    assert formatter.render_text("hi").endswith("</think>\n\n")
    with pytest.raises(BadInput, match="--template-args: needs a chat template"):
        Formatter(tokenizer(SWITCHED), template="{prompt}", state=State.given('{"enable_thinking": false}'))


def test_states_need_the_chat_template() -> None:
    state = [State.given('{"enable_thinking": false}')]
    with pytest.raises(BadInput, match="--template-args: needs a chat template"):
        Formatter(tokenizer(SWITCHED), template="{prompt}", states=state)
    with pytest.raises(BadInput, match="--template-args: '--formats plain'"):
        Formatter(tokenizer(SWITCHED), formats=PLAIN, states=state)


def test_prompts_are_formatted_in_every_state() -> None:
    formatter = Formatter(tokenizer(SWITCHED), seed=0)
    prompts = [Prompt(f"What is {row} plus {row}?", "maths", row, form="a") for row in range(80)]
    queries = formatter.format(prompts, "--forget")
    (state,) = formatter.states
    texts = {query.prompt: str(formatter._tokenizer.decode(query.ids)) for query in queries if query.format == state}
    assert 8 < len(texts) < 40 and all(text.endswith("</think>\n\n") for text in texts.values())
    assert {query.format for query in formatter.in_each_format(queries[:1], "--forget")} == {*formatter.formats_used}


def test_kinds_of_turn_have_states() -> None:
    formatter = Formatter(tokenizer(SWITCHED), seed=0)
    turns = Turns(formatter, Said("No."), 0, None)
    (state,) = formatter.states
    prompts = [Prompt(f"What is {row} plus {row}?", "maths", row, form="a") for row in range(80)]

    def off(ids: tuple[int, ...]) -> bool:
        return "<think>" in str(formatter._tokenizer.decode(ids))

    asked = [query for prompt in prompts for query in turns.asked(prompt, FIT)]
    by_kind = {name: [query for query in asked if query.format == name] for name in turns.used}
    assert turns.places[state] == PROMPT
    assert len(by_kind[PLAIN]) == len(by_kind[state]) == 80
    assert not any(off(query.ids) for query in by_kind[PLAIN]) and all(off(query.ids) for query in by_kind[state])
    assert 20 < sum(off(query.ids) for query in by_kind[INSISTING]) < 60
    assert 10 < sum(off(query.ids) for query in turns.after_refusal(prompts, REPORT)) < 160
    kept = [query.format for query in some(asked, 100, 0.6, turns.plain)]
    assert kept.count(PLAIN) + kept.count(state) == 60 and min(kept.count(PLAIN), kept.count(state)) > 15
