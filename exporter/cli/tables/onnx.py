"""The results of `unskill onnx` for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from exporter.checkpoint.sentences import refitted_promise, refitted_rows
from exporter.cli.output import echo_json
from exporter.cli.tables.console import console, titled
from exporter.common.files import human_size


def show_check(summary: dict[str, Any], as_json: bool) -> None:
    """Print the comparison and, for quantized weights, what was refitted."""
    if as_json:
        echo_json(summary)
        return
    terminal = console(140)
    quantized = summary.get("quantize")
    for skill in summary.get("skills", []):
        show_skill(skill, summary, terminal)
    what = f"{quantized} weights: ONNX Runtime" if quantized else f"{summary['dtype']}: torch against ONNX Runtime"
    terminal.print(check_table(f"{summary['checkpoint']}, {what}", summary["self_check"]))
    if "out" in summary:
        print(f"\nWrote {summary['out']} ({human_size(summary['bytes'])})")


def check_table(title: str, rows: list[dict[str, Any]]) -> Table:
    counted = ("sequences", "positions", "greatest difference", "same next token", "same refusals")
    table = titled(title, ("case", "by", *counted))
    for row in rows:
        close = f", {row['close']} decided by rounding" if row["close"] else ""
        table.add_row(
            row["case"],
            row["side"],
            f"{row['sequences']}{close}",
            str(row["positions"]),
            f"{row['difference']:.1e}",
            str(row["argmax"]),
            str(row["refusals"]),
        )
    return table


def show_skill(skill: Mapping[str, Any], summary: Mapping[str, Any], terminal: Console) -> None:
    """Print the results for one skill on the quantized graph."""
    neurons, found = skill["neurons"], skill["key_space"]
    if neurons is not None:
        moved = neurons["forget_mean_moved_deviations"]
        terminal.print(
            f"{skill['name']}: distributions of {neurons['neurons']} adjusted neurons measured again; forget means "
            f"moved by {moved['median']:.2f} deviations (median; most {moved['most']:.1f})."
        )
        for name, text in neurons["texts"].items():
            terminal.print(f"  {name} texts: loss {text['rise']:+.4f} nats per token with the neurons adjusted")
    if found is None:
        return
    lost, false = found["blocked_without_refitting"], found["false_blocks_without_refitting"]
    terminal.print(
        f"{skill['name']}: without refitting it would refuse {lost['hits']} of {lost['total']} held-out prompts, and "
        f"{false['hits']} of {false['total']} plain ones that are to be answered. Now, on this graph:"
    )
    terminal.print(refitted_promise(found, summary))
    if not summary["answers"]:
        terminal.print("False blocks over answers were not measured (--no-answers).")
    title = f"{skill['name']}: inside a region, report part"
    table = titled(title, ("what", "source", "format", "hits", "of", "95 % interval"))
    for row in refitted_rows(found):
        interval = f"{row['low']:.1%} to {row['high']:.1%}"
        table.add_row(row["what"], row["source"], row["format"], str(row["hits"]), str(row["total"]), interval)
    terminal.print(table)
