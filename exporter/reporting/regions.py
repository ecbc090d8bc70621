"""Regions along discriminants in figures: shares blocked by kind of turn and by form, from the summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from exporter.checkpoint.card.figure import Figure, Row, figure_id
from exporter.checkpoint.summary import KeySpaceSummary, StoredRate
from exporter.common.rates import rate
from exporter.prompts.packaged import EVERYDAY
from exporter.reporting.key_space import EVERYDAY_PROMPTS, FORGET, NEAR_MISSES

ALL = "all"
"""Where the summary has all kinds of turn together."""
CAPTION = (
    "Bars are shares of queries blocked, lines exact 95 % intervals. Report part: prompts, phrases, system prompts "
    "and conversations that nothing was fitted on."
)
SEVERAL = "A prompt counts in each kind of turn that it was asked in; intervals take these as independent."


def discriminant_figures(found: KeySpaceSummary, number: int) -> list[Figure]:
    """Shares blocked by kind of turn, and by form where the prompts have forms."""
    regions = found.discriminant
    assert regions is not None
    near, everyday = regions.near_miss_forms, found.false_blocks.get(EVERYDAY, {})
    sides = {FORGET: found.blocked.values(), NEAR_MISSES: near.values(), EVERYDAY_PROMPTS: [everyday]}
    kinds = dict.fromkeys(kind for source in found.blocked.values() for kind in source if kind != ALL)
    turns = [
        row(kind, series, [each[kind] for each in groups if kind in each])
        for kind in kinds
        for series, groups in sides.items()
    ]
    forms = [row(form, FORGET, [each[ALL]]) for form, each in regions.forms.items()]
    forms += [row(form, NEAR_MISSES, [each[ALL]]) for form, each in near.items()]
    if forms and everyday:
        forms.append(row(EVERYDAY_PROMPTS, EVERYDAY_PROMPTS, [everyday[ALL]]))
    figures = [
        ("kinds of turn", "Share blocked by kind of turn", turns, ""),
        ("forms", "Share blocked by form", forms, f" {SEVERAL}"),
    ]
    return [
        Figure(figure_id(number, name), "shares", title, f"{CAPTION}{more} {sizes(rows)}.", counted(rows))
        for name, title, rows, more in figures
        if rows
    ]


def row(by: str, series: str, rates: Sequence[StoredRate]) -> Row:
    """Several rates together."""
    found = rate(sum(each.hits for each in rates), sum(each.total for each in rates))
    return {"by": by, "series": series, "share": found.rate} | asdict(found)


def counted(rows: Iterable[Row]) -> list[Row]:
    """Those of which there is anything."""
    return [each for each in rows if each["total"]]


def sizes(rows: Iterable[Row]) -> str:
    """How many queries each series has."""
    totals: dict[str, int] = {}
    for each in rows:
        totals[each["series"]] = totals.get(each["series"], 0) + each["total"]
    return ", ".join(f"{name}: {total}" for name, total in totals.items() if total).capitalize()
