"""A figure as plain numbers: what report.json holds and what charts are drawn of."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        id: Name of the PNG and of the place in the page: letters, digits and hyphens.
        kind: Which chart it is (see `exporter.reporting.charts`).
        title: What it shows, in a line.
        caption: What is plotted, of which part of the prompts, and how many.
        rows: The numbers, one object for each mark.
        rules: Lines across the chart at a value, each {"value", "label"}: an alpha, a layer, a limit.
    """

    id: str
    kind: str
    title: str
    caption: str
    rows: list[Row]
    rules: list[Row] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def figure_id(skill: int, kind: str) -> str:
    """Skills by number: their names may hold anything."""
    return f"skill-{skill}-{re.sub('[^a-z]+', '-', kind)}"
