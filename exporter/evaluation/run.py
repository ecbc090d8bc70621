"""`unskill evaluate` from its settings to its summary."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from exporter.common.errors import BadInput
from exporter.common.files import check_apart, write_errors, write_json
from exporter.common.progress import Progress
from exporter.common.text import Notify, counted
from exporter.common.version import __version__
from exporter.evaluation import sandbox
from exporter.evaluation.comparison import compared, summarised
from exporter.evaluation.plan import make_task, read_source
from exporter.evaluation.records import BASE, EDITED, Records, Result, read_by_item
from exporter.evaluation.scoring import Refusals
from exporter.evaluation.settings import KINDS, EvaluateSettings
from exporter.evaluation.tasks import Task
from exporter.models.batches import run_batches
from exporter.models.files import find_base
from exporter.models.loading import LoadedModel, load_checkpoint, load_files
from exporter.recipes.templates import given_template


def evaluate(settings: EvaluateSettings, notify: Notify) -> dict[str, Any]:
    """Evaluate a checkpoint, and its base beside it; results by item are in settings.out.

    Raises BadInput for sources, models and folders that cannot be used, RunFailed on NaN and a full disk.
    """
    check_apart(settings.out, settings.checkpoint, "--out and CHECKPOINT")
    if settings.sources.get("code"):
        sandbox.require()
    read = [
        read_source(kind, spec, settings.shots, settings.limit, settings.seed, notify)
        for kind in KINDS
        for spec in settings.sources.get(kind, ())
    ]
    loaded = load_checkpoint(settings.checkpoint, settings.dtype, settings.device)
    template = given_template(settings.prompt_template)
    formatter = loaded.formatter(template, formats=settings.formats, seed=settings.seed, state=settings.state)
    for text in formatter.notes:
        notify(text)
    tasks = [make_task(loaded, formatter, each) for each in read]
    names = file_names(tasks)
    results: list[dict[str, list[Result]]] = [{} for _ in tasks]
    about = {"unskill": __version__, EDITED: loaded.name, "dtype": str(loaded.model.dtype).removeprefix("torch.")}
    roles = [EDITED] if settings.base is None else [EDITED, BASE]
    for role in roles:
        if role == BASE:
            del loaded  # its memory, before the base takes as much
            loaded = load_files(find_base(str(settings.base)), settings.dtype, settings.device)
            about[BASE] = loaded.name
        for task, name, found in zip(tasks, names, results, strict=True):
            if role == EDITED or not isinstance(task, Refusals):  # a base model refuses nothing
                found[role] = run_task(settings, task, role, loaded, f"{name}.{role}.jsonl")
    summaries = []
    for task, name, found in zip(tasks, names, results, strict=True):
        summary: dict[str, Any] = {"task": task.kind, "source": task.label, "items": len(task.items), "of": task.found}
        summary |= summarised(task, found) | compared(task, found, settings.seed)
        if settings.against is not None:
            file = f"{name}.{EDITED}.jsonl"
            summary["against"] = against(settings.against, task, found[EDITED], file, settings.seed)
        summaries.append(summary)
    asked = {name: getattr(settings, name) for name in ("seed", "limit", "formats", "template_args")}
    whole = about | asked | {"tasks": summaries}
    path = settings.out / "summary.json"
    with write_errors(path):
        write_json(path, whole)
    return whole


def file_names(tasks: Sequence[Task]) -> list[str]:
    """A name for each task's files, from its kind and source; from the second of the same name on with a number."""
    found: list[str] = []
    for task in tasks:
        stem = f"{task.kind}-" + re.sub(r"[^\w-]", "_", task.label)
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        found.append(next(name for name in names if name not in found))
    return found


def run_task(settings: EvaluateSettings, task: Task, role: str, loaded: LoadedModel, file: str) -> list[Result]:
    """Results of all items, including those of an earlier, interrupted run."""
    path = settings.out / file
    if settings.overwrite:
        path.unlink(missing_ok=True)
    # The authors' code draws one number for a whole call: the runtime gives it one row at a time.
    batch_size = 1 if loaded.settings.get("compat") == "official" else settings.batch_size
    records = Records(path, header(settings, task, role, loaded) | {"batch_size": batch_size}, task.items)
    todo = [rows for rows in task.batches(batch_size) if not all(row in records.results for row in rows)]
    what = f"{task.kind} {task.label}"

    def run(rows: list[int]) -> list[Result]:
        # For the authors' code: nothing else here draws from torch.
        torch.manual_seed(settings.seed + rows[0])
        return task.run(loaded, rows)

    items = len(task.items)
    with Progress(settings.quiet).stage(f"{role}: {what}", items, counted(items, "item")) as advance:
        advance(items - sum(map(len, todo)))
        for done, results in run_batches(todo, run, what):
            records.append(done, results)
            advance(len(done))
    return records.all()


def header(settings: EvaluateSettings, task: Task, role: str, loaded: LoadedModel) -> dict[str, Any]:
    """Everything that the results of a task depend on."""
    ids = hashlib.sha256(json.dumps([list(row) for row in task.ids]).encode())
    for item in task.items:
        ids.update(item.sha256.encode())
    return {
        "unskill": __version__,
        "task": task.kind,
        "source": task.label,
        "role": role,
        "model": loaded.name,
        "identity": loaded.files.identity,
        "items": len(task.items),
        "items_sha256": ids.hexdigest(),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": settings.device,
    }


def against(earlier_folder: Path, task: Task, results: Sequence[Result], file: str, seed: int) -> dict[str, Any]:
    """The checkpoint's results beside those of an earlier evaluation, on the items that both have."""
    if not (earlier_folder / file).is_file():
        raise BadInput(f"--against: {earlier_folder.name} has no {file}, so nothing to compare with")
    earlier = read_by_item(earlier_folder / file)
    both = {item.sha256: new for item, new in zip(task.items, results, strict=True) if item.sha256 in earlier}
    if not both:
        raise BadInput(f"--against: {file} there has none of these items")
    runs = {BASE: [earlier[sha256] for sha256 in both], EDITED: list(both.values())}
    return {"items": len(both)} | compared(task, runs, seed)["difference"]
