"""The checks of `unskill verify` on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from exporter.cli.tables.console import console, titled
from exporter.common.text import literal, printable


def show(found: Mapping[str, Any]) -> None:
    """The checks as a table."""
    words = {True: "ok", False: "[bold red]FAILED[/]", None: "not checked"}
    table = titled(escape(printable(found["checkpoint"])), ("check", "result", "what was seen"))
    for check in found["checks"]:
        table.add_row(check["name"], words[check["ok"]], escape(literal(check["detail"])))
    console(140).print(table)
