"""Figures of regions along discriminants against the summary that they are made of."""

from __future__ import annotations

import pytest

from exporter.checkpoint.summary import DiscriminantSummary, KeySpaceSummary, SourceRates, StoredRate
from exporter.common.rates import rate
from exporter.reporting.charts import chart
from exporter.reporting.regions import discriminant_figures


def stored(hits: int, total: int) -> StoredRate:
    return StoredRate.model_validate(rate(hits, total).as_json())


def found(forms: SourceRates, near: SourceRates, everyday: SourceRates) -> KeySpaceSummary:
    """Of two sources of forget prompts; only what the figures are made of."""
    blocked = {
        "maths": {"plain": stored(20, 30), "deep": stored(9, 30), "all": stored(29, 60)},
        "sums.jsonl": {"plain": stored(5, 10), "all": stored(5, 10)},
    }
    regions = DiscriminantSummary.model_construct(forms=forms, near_miss_forms=near)
    return KeySpaceSummary.model_construct(blocked=blocked, false_blocks=everyday, discriminant=regions)


FORMS = {"terse": {"plain": stored(20, 30), "deep": stored(9, 30), "all": stored(29, 60)}}
NEAR = {name: {"plain": stored(1, 15), "all": stored(1, 15)} for name in ("terse", "chatty")}
EVERYDAY = {"everyday": {"plain": stored(2, 90), "all": stored(2, 90)}, "retain.jsonl": {"plain": stored(9, 9)}}


def test_shares_are_those_of_the_summary() -> None:
    turns, forms = discriminant_figures(found(FORMS, NEAR, EVERYDAY), 1)
    counts = {(row["by"], row["series"]): (row["hits"], row["total"]) for row in turns.rows}
    # Sources and forms are added up, and what was not asked has no bar.
    assert counts == {
        ("plain", "forget set"): (25, 40),
        ("plain", "near misses"): (2, 30),
        ("plain", "everyday prompts"): (2, 90),
        ("deep", "forget set"): (9, 30),
    }
    first = turns.rows[0]
    assert first["share"] == 25 / 40 and first["low"] == pytest.approx(rate(25, 40).low) and first["high"] < 1
    assert {(row["by"], row["series"]): (row["hits"], row["total"]) for row in forms.rows} == {
        ("terse", "forget set"): (29, 60),
        ("terse", "near misses"): (1, 15),
        ("chatty", "near misses"): (1, 15),
        ("everyday prompts", "everyday prompts"): (2, 90),
    }
    assert turns.caption.endswith("Forget set: 70, near misses: 30, everyday prompts: 90.")


def test_prompts_of_the_user_have_no_forms() -> None:
    (turns,) = discriminant_figures(found({}, {}, EVERYDAY), 2)
    assert turns.id == "skill-2-kinds-of-turn" and {row["series"] for row in turns.rows} == {
        "forget set",
        "everyday prompts",
    }


def test_bars_and_intervals_are_drawn_of_the_rows() -> None:
    for figure in discriminant_figures(found(FORMS, NEAR, EVERYDAY), 1):
        drawn = chart(figure)
        assert drawn["datasets"]["rows"] == figure.rows
        bar, line = drawn["layer"]
        assert bar["mark"]["type"] == "bar" and bar["encoding"]["x"]["field"] == "share"
        assert (line["encoding"]["x"]["field"], line["encoding"]["x2"]["field"]) == ("low", "high")
