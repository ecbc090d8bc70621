"""Where tables are printed, and what they have in common."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def console(width: int) -> Console:
    """The terminal at its own width; `width` columns if stdout is no terminal."""
    return Console(width=None if sys.stdout.isatty() else width)


def titled(title: str, left: Sequence[str], right: Sequence[str] = (), caption: str | None = None) -> Table:
    """A table without rows: names of the columns that are aligned left, then of those aligned right."""
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for name in (*left, *right):
        table.add_column(name, justify="left" if name in left else "right")
    return table


def rate_cells(rate: Mapping[str, Any]) -> tuple[str, str, str]:
    """A rate (see `StoredRate`) as share, total and 95 % interval."""
    if not rate["total"]:
        return "-", "0", "-"
    return f"{rate['rate']:.1%}", str(rate["total"]), f"{rate['low']:.1%} - {rate['high']:.1%}"
