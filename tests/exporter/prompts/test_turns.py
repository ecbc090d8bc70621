"""Kinds of turn: what surrounds a prompt, and that parts share neither prompts nor surroundings."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from exporter.prompts.formats import PLAIN, Formatter
from exporter.prompts.region_parts import SIDES, make_parts
from exporter.prompts.sources import Prompt
from exporter.prompts.turns import (
    AFTER_ANSWER,
    AFTER_REFUSAL,
    BEGUN,
    FIT,
    INSISTING,
    PREFILL,
    PROMPT,
    REFUSED,
    REPORT,
    TURNS,
    Said,
    Turns,
    deal,
    some,
)
from exporter.recipes.effort import EFFORTS
from tests.exporter.prompts.test_formats import CHAT, NO_SYSTEM, tokenizer

REFUSAL = "Your query is not valid"
PARTS = FIT, REPORT


def turns(chat: str | None = CHAT, max_length: int | None = None, **options: str) -> tuple[Turns, Formatter]:
    formatter = Formatter(tokenizer(chat), seed=0, **options)
    return Turns(formatter, Said(REFUSAL), 0, max_length), formatter


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(f"What is {row} plus {row}?", "maths", row, form=f"form {row % 4}", language="en" if row % 3 else "de")
        for row in range(count)
    ]


def read(formatter: Formatter, ids: tuple[int, ...]) -> str:
    return str(formatter._tokenizer.decode(ids))


def test_every_kind_of_turn_shows_the_prompt_in_its_surroundings() -> None:
    made, formatter = turns()
    (prompt,) = prompts(1)
    found = {
        query.format: read(formatter, query.ids) for query in made.put(prompt, [each.name for each in TURNS], FIT)
    }
    assert found.keys() == {turn.name for turn in TURNS}
    assert all(prompt.text in text and "{request}" not in text for text in found.values())
    assert found[PLAIN] == f"<s><|user|>{prompt.text}<|end|><|assistant|>"
    assert "<|system|>" in found["system"] and found["second-turn"].count("<|assistant|>") == 2
    assert found["deep"].count("<|user|>") >= 3
    assert found["buried"].count("<|user|>") == 1 and len(found["buried"]) > 300
    # A begun answer and an insisting message begin with the plain prompt, and cost no forward of their own for it.
    for name in (PREFILL, INSISTING):
        assert found[name].startswith(found[PLAIN]) and found[name] != found[PLAIN]
    assert found[INSISTING].startswith(f"{found[PLAIN]}{REFUSAL}<|end|><|user|>")
    assert found[INSISTING].endswith("<|assistant|>") and not found[PREFILL].endswith("<|assistant|>")


def test_the_skill_is_asked_for_in_every_place() -> None:
    made, _ = turns()
    asked = made.asked(prompts(1)[0], FIT)
    assert Counter(made.places[query.format] for query in asked) == {PROMPT: 2, BEGUN: 1, REFUSED: 1}
    answered = [query for prompt in prompts(300) for query in made.answered(prompt, FIT)]
    counts = Counter(made.places[query.format] for query in answered)
    assert counts.keys() == {PROMPT, BEGUN} and counts[BEGUN] == 300 and 360 < counts[PROMPT] < 440


def test_parts_share_no_surroundings() -> None:
    made, _ = turns()
    seen: dict[tuple[str, int], set[str]] = defaultdict(set)
    for part in PARTS:
        for prompt in prompts(200):
            for query in made.asked(prompt, part):
                if query.format != PLAIN:
                    seen[query.format, query.variant].add(part)
        for query in (*made.after_refusal(prompts(9), part), *made.after_answer(part)):
            seen[query.format, query.variant].add(part)
    assert all(len(parts) == 1 for parts in seen.values())
    assert {name for name, _ in seen} == {turn.name for turn in TURNS[1:]} | {AFTER_REFUSAL, AFTER_ANSWER}


def test_prompts_are_dealt_by_form_and_language() -> None:
    parts, counts = deal(prompts(200), 0), (140, 60)
    assert {part: len(each) for part, each in parts.items()} == dict(zip(PARTS, counts, strict=True))
    assert len({prompt.row for each in parts.values() for prompt in each}) == 200
    for part, count in zip(PARTS, counts, strict=True):
        forms = Counter(prompt.form for prompt in parts[part])
        assert all(abs(forms[f"form {each}"] - count / 4) <= 2 for each in range(4))
    assert deal(list(reversed(prompts(200))), 0) == parts
    assert deal(prompts(200), 1) != parts


def test_messages_after_a_refusal_follow_a_forget_prompt() -> None:
    made, formatter = turns()
    after = made.after_refusal(prompts(5), REPORT)
    assert len(after) >= 60
    for query in after:
        text = read(formatter, query.ids)
        assert f"<|assistant|>{REFUSAL}<|end|><|user|>{query.prompt.text}<|end|><|assistant|>" in text
    assert all(REFUSAL not in read(formatter, query.ids) for query in made.after_answer(REPORT))


@pytest.mark.parametrize(
    ("chat", "options", "names"),
    [
        (NO_SYSTEM, {}, {turn.name for turn in TURNS} - {"system"}),
        (CHAT, {"formats": "plain"}, {PLAIN}),
        (None, {"template": "Question: {prompt}\nAnswer:"}, {PLAIN}),
    ],
)
def test_kinds_that_a_template_cannot_express_are_left_out(
    chat: str | None, options: dict[str, str], names: set[str]
) -> None:
    made, _ = turns(chat, **options)
    assert made.used.keys() == names
    assert {query.format for prompt in prompts(60) for query in made.asked(prompt, FIT)} == names
    if INSISTING not in names:
        assert not made.after_refusal(prompts(3), FIT) and not made.after_answer(FIT)


def test_too_long_ones_are_left_out_and_counted() -> None:
    made, _ = turns(max_length=120)
    kept = [query for prompt in prompts(50) for query in made.asked(prompt, FIT)]
    assert kept and all(len(query.ids) <= 120 for query in kept)
    assert len(kept) + made.skipped == 200


@pytest.mark.parametrize(("most", "plain"), [(100, 60), (360, 216), (400, 250), (2000, 250)])
def test_other_kinds_of_turn_have_a_share_of_a_part(most: int, plain: int) -> None:
    made, _ = turns()
    queries = [query for prompt in prompts(50) for query in made.asked(prompt, FIT)]
    alone = [query for prompt in prompts(250)[50:] for query in made.put(prompt, [PLAIN], FIT)]
    kept = some([*queries, *alone], most, 0.6)  # 250 plain ones, 150 others
    formats = Counter(query.format for query in kept)
    assert (formats[PLAIN], len(kept)) == (plain, min(most, 400))
    assert kept == tuple(query for query in (*queries, *alone) if query in set(kept))


def test_less_effort_means_fewer_queries_of_every_part_and_kind() -> None:
    made, _ = turns()
    forget, retain = (
        deal(prompts(1200), 0),
        deal([replace(each, source="o") for each in prompts(2400)], 0),
    )
    sizes = []
    for effort in EFFORTS.values():
        parts = make_parts(forget, retain, made, 0, effort)
        sizes.append([len(getattr(getattr(parts, part), side)) for part in PARTS for side in SIDES])
        for part in (parts.fit, parts.report):
            assert {query.format for query in part.asked} == set(made.used)
    quick, normal, thorough = sizes
    assert all(few < some_ < many for few, some_, many in zip(quick, normal, thorough, strict=True)), sizes
