"""The results of an evaluation as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from exporter.cli.tables.console import titled
from exporter.common.text import counted
from exporter.evaluation.comparison import DROP
from exporter.evaluation.records import BASE, EDITED

MEASURES = {
    "forget": "refused",
    "retain": "refused",
    "text": "perplexity",
    "choice": "accuracy",
    "gsm8k": "exact match",
    "code": "pass@1",
    "qa": "exact match",
}


def print_evaluation(summary: Mapping[str, Any], console: Console) -> None:
    """One row per task: the base, the checkpoint, and whether they differ by more than noise."""
    limit = "all items" if summary["limit"] is None else f"at most {summary['limit']} items per source"
    beside = f" beside {summary[BASE]}" if BASE in summary else ""
    table = titled(
        f"{summary[EDITED]}{beside}, {summary['dtype']}: {limit}, seed {summary['seed']}",
        ("task", "source", "measure"),
        ("items", BASE, EDITED, "difference", "refused", "overwritten"),
        "in brackets: 95 % intervals; p: exact McNemar test of right against wrong, item by item; refused "
        f"answers are wrong ones; answers lost: token loss up by {DROP} nats or more; overwritten: positions scored "
        f"where {EDITED} has the refusal in place of a prediction, {BASE} never; perplexity is of texts without any",
    )
    for task in summary["tasks"]:
        table.add_row(*cells(task))
        if task["task"] == "qa":
            f1 = (f"{task[role]['f1']:.3f}" if role in task else "-" for role in (BASE, EDITED))
            table.add_row("", "", "F1", "", *f1, "", "", "")
    console.print(table)
    compared = [task for task in summary["tasks"] if "against" in task]
    if not compared:
        return
    title = "Against the earlier evaluation, items that both have"
    table = titled(title, ("task", "source", "items", "difference"))
    for task in compared:
        table.add_row(task["task"], task["source"], str(task["against"]["items"]), difference(task, task["against"]))
    console.print(table)


def cells(task: Mapping[str, Any]) -> tuple[str, ...]:
    kind, edited = task["task"], task[EDITED]
    items = f"{task['items']} of {task['of']}"
    if kind == "text":
        base, value = (text_cell(task.get(role)) for role in (BASE, EDITED))
        refused = "-"
    elif kind in ("forget", "retain"):
        base, value, refused = "-", rate_cell(edited["refused"]["all"]), "-"
    else:
        base, value = (rate_cell(task[role]["correct"]) if role in task else "-" for role in (BASE, EDITED))
        refused = f"{edited['refused']['hits']}/{edited['refused']['total']}"
    found = difference(task, task["difference"]) if "difference" in task else "-"
    count = edited.get("overwritten")
    where = f" in {counted(count['items'], 'item')}" if count and count["positions"] else ""
    overwritten = f"{count['positions']}/{count['of']}{where}" if count else "-"
    return kind, task["source"], MEASURES[kind], items, base, value, found, refused, overwritten


def text_cell(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None or found["perplexity"] is None else f"{found['perplexity']:.3f}"


def rate_cell(found: Mapping[str, Any]) -> str:
    if not found["total"]:
        return "-"
    return f"{found['hits']}/{found['total']} [{found['low']:.1%}, {found['high']:.1%}]"


def difference(task: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if task["task"] != "text":
        return f"-{found['only_first']} +{found['only_second']}, p = {found['p_value']:.2g}"
    if not found.get("texts"):
        return "-"
    dropped = found["dropped"]
    lost = f", {dropped['hits']}/{dropped['total']} answers lost" if dropped["total"] else ""
    return f"x{found['ratio']:.3f} [{found['ratio_low']:.3f}, {found['ratio_high']:.3f}]{lost}"
