"""Splits: disjoint, complete, the same for the same seed, and of the sizes that the promises need."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.common.errors import BadInput
from exporter.prompts.formats import Query
from exporter.prompts.sources import Prompt
from exporter.prompts.splits import check_disjoint, deduplicate, split_forget, split_retain


def prompts(count: int, source: str = "sums.jsonl", kind: str | None = None) -> list[Prompt]:
    return [Prompt(f"{source} {kind} {row}", source, row, kind) for row in range(1, count + 1)]


@settings(deadline=None, database=None)
@given(count=st.integers(60, 600), seed=st.integers(0, 2**63))
def test_forget_parts_cover_all_prompts_once(count: int, seed: int) -> None:
    items = prompts(count)
    parts = split_forget(items, seed)
    together = [*parts.fit, *parts.choose, *parts.calibrate, *parts.report]
    assert sorted(together, key=lambda prompt: prompt.row) == items
    assert split_forget(items[::-1], seed) == parts
    assert len(parts.fit) >= 0.29 * count
    assert min(len(parts.choose), len(parts.report)) >= 6
    assert len(parts.calibrate) >= (45 if count >= 90 else 30)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (60, (18, 6, 30, 6)),
        (90, (27, 9, 45, 9)),
        (120, (48, 12, 48, 12)),
        (150, (60, 15, 60, 15)),
        (400, (160, 40, 160, 40)),
    ],
)
def test_forget_sizes(count: int, sizes: tuple[int, ...]) -> None:
    parts = split_forget(prompts(count), 0)
    assert (len(parts.fit), len(parts.choose), len(parts.calibrate), len(parts.report)) == sizes


def test_too_few_forget_prompts() -> None:
    with pytest.raises(BadInput, match=r"--forget: 59 .* at least 60 .*24 do with --region discriminant; .*--alpha"):
        split_forget(prompts(59), 0)
    parts = split_forget(prompts(20), 0, minimum=20, calibrate_at_least=0)
    assert (len(parts.fit), len(parts.choose), len(parts.calibrate), len(parts.report)) == (8, 2, 8, 2)
    with pytest.raises(BadInput, match=r"--forget: 23 .* at least 24 are needed \(20 do when --layer"):
        split_forget(prompts(23), 0, minimum=24)
    with pytest.raises(BadInput, match=r"--forget: 19 .* at least 20 are needed$"):
        split_forget(prompts(19), 0, minimum=20)


def test_seed_moves_prompts_between_parts() -> None:
    assert set(split_forget(prompts(100), 0).report) != set(split_forget(prompts(100), 1).report)


def test_queries_are_split_as_their_prompts() -> None:
    items = prompts(80)
    queries = [Query(prompt, "plain", (1, prompt.row)) for prompt in items]
    by_prompt, by_query = split_forget(items, 5), split_forget(queries, 5)
    assert [query.prompt for query in by_query.calibrate] == list(by_prompt.calibrate)
    assert [query.prompt for query in split_retain(queries, 5).report] == list(split_retain(items, 5).report)


@settings(deadline=None, database=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), seed=st.integers(0, 1000))
def test_retain_halves_hold_the_same_mixture(sizes: list[int], seed: int) -> None:
    items = prompts(7, "code.csv") + [
        p for i, size in enumerate(sizes) for p in prompts(size, "everyday", f"kind {i}")
    ]
    parts = split_retain(items, seed)
    assert Counter([*parts.choose, *parts.report]) == Counter(items)
    assert abs(len(parts.choose) - len(parts.report)) <= 1
    choose, report = (Counter((p.source, p.kind) for p in half) for half in (parts.choose, parts.report))
    assert all(abs(choose[stratum] - report[stratum]) <= 1 for stratum in choose | report)
    assert split_retain(items[::-1], seed) == parts


def test_deduplicate_keeps_the_first() -> None:
    items = [Prompt("a", "x", 1), Prompt("b", "x", 2), Prompt("a", "y", 1), Prompt("a ", "y", 2)]
    assert deduplicate(items) == [items[0], items[1], items[3]]
    assert deduplicate([]) == []


def test_check_disjoint() -> None:
    forget, retain = prompts(10), prompts(10, "code.csv")
    for right in (retain, [*retain, Prompt(forget[0].text + " \n", "z", 1)], forget[:5] + retain, []):
        check_disjoint(forget, right)
    for wrong in (forget, forget[::-1], forget[:6] + retain, forget[:2] + retain[:1]):
        with pytest.raises(BadInput, match=r"--retain: [0-9]+ of the [0-9]+ retain prompts are also forget prompts"):
            check_disjoint(forget, wrong)
