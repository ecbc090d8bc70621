"""Batches have every row once, are of similar length, and take the least work."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.models.batches import AUTO_ROWS, BATCH_COST, batched

LENGTHS = st.lists(st.integers(1, 300), max_size=8)


def work(batches: list[list[int]], lengths: list[int], new_tokens: int) -> int:
    forwards = BATCH_COST * (1 + new_tokens)
    return sum(len(rows) * max(lengths[row] for row in rows) + forwards for rows in batches)


def partitions(rows: list[int]) -> list[list[list[int]]]:
    """All ways to cut rows, in their order, into batches."""
    if not rows:
        return [[]]
    return [[rows[:size], *rest] for size in range(1, len(rows) + 1) for rest in partitions(rows[size:])]


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 900), st.one_of(st.none(), st.integers(1, 5)), st.sampled_from((0, 3)))
def test_no_other_batches_of_neighbours_take_less_work(
    lengths: list[int], tokens: int, batch_size: int | None, new_tokens: int
) -> None:
    def fits(rows: list[int]) -> bool:
        if batch_size is not None:
            return len(rows) <= batch_size
        return len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= tokens

    found = batched(range(len(lengths)), lengths.__getitem__, tokens, batch_size, new_tokens)
    order = [row for rows in found for row in rows]
    assert sorted(order) == list(range(len(lengths)))
    assert all(lengths[one] >= lengths[other] for one, other in pairwise(order))
    assert all(map(fits, found))
    others = [each for each in partitions(order) if all(map(fits, each))]
    assert work(found, lengths, new_tokens) == min(work(each, lengths, new_tokens) for each in others)


def test_a_long_row_does_not_lengthen_short_ones_unless_batches_cost_more() -> None:
    lengths = [200, *[10] * 15]
    assert list(map(len, batched(range(16), lengths.__getitem__, 4096, None))) == [1, 15]
    assert list(map(len, batched(range(16), lengths.__getitem__, 4096, None, new_tokens=64))) == [16]


def test_a_batch_has_a_limit_of_rows() -> None:
    assert max(map(len, batched(range(200), lambda row: 1, 10**6, None))) == AUTO_ROWS
