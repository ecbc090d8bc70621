"""The checks of `unskill verify` on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from exporter.cli.tables.console import console, rate_cells, titled
from exporter.common.text import literal, printable


def show(found: Mapping[str, Any]) -> None:
    """The checks as a table."""
    words = {True: "ok", False: "[bold red]FAILED[/]", None: "not checked"}
    table = titled(escape(printable(found["checkpoint"])), ("check", "result", "what was seen"))
    for check in found["checks"]:
        table.add_row(check["name"], words[check["ok"]], escape(literal(check["detail"])))
    screen = console(140)
    screen.print(table)
    for attack in found.get("attack", ()):
        screen.print(attack_table(attack))


def attack_table(found: Mapping[str, Any]) -> Table:
    """What is refused of one skill: by kind of turn, by form, and of what is to be answered."""
    table = titled(
        f"{escape(printable(found['skill']))}: refused",
        ("", "asked"),
        ("refused", "of", "share", "95 % interval"),
        caption="Prompts, phrases, system prompts and conversations of the report part, that nothing was fitted on; "
        f"forms over all kinds of turn. {found['left_out']} longer than the model's context were left out.",
    )
    for title, rows in (("kind of turn", "kinds"), ("form", "forms"), ("to be answered", "harmless")):
        for place, (name, rate) in enumerate(found[rows].items()):
            share, total, interval = rate_cells(rate) if "rate" in rate else ("", str(rate["total"]), "")
            table.add_row("" if place else title, escape(name), str(rate["hits"]), total, share, interval)
        table.add_section()
    return table
