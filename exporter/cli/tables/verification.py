"""The checks of `unskill verify` on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from exporter.common.text import literal, printable


def show(found: Mapping[str, Any]) -> None:
    """The checks as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    words = {True: "ok", False: "[bold red]FAILED[/]", None: "not checked"}
    table = Table(title=escape(printable(found["checkpoint"])), title_justify="left")
    for name in ("check", "result", "what was seen"):
        table.add_column(name)
    for check in found["checks"]:
        table.add_row(check["name"], words[check["ok"]], escape(literal(check["detail"])))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
