"""`unskill evaluate` from its settings to its summary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm

from exporter.common.errors import BadInput
from exporter.common.files import check_apart, write_errors
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


def evaluate(settings: EvaluateSettings, notify: Callable[[str], None]) -> dict[str, Any]:
    """Evaluate a checkpoint, and its base beside it; results by item are in settings.out.

    Raises BadInput for sources, models and folders that cannot be used, RunFailed on NaN and a full disk.
    """
    check_apart(settings.out, settings.checkpoint, "--out and CHECKPOINT")
    if settings.sources.get("code"):
        sandbox.require()
    read = [
        read_source(kind, spec, settings.shots, settings.limit, settings.seed)
        for kind in KINDS
        for spec in settings.sources.get(kind, ())
    ]
    loaded = load_checkpoint(settings.checkpoint, settings.dtype, settings.device)
    template = given_template(settings.prompt_template)
    formatter = loaded.formatter(template, formats=settings.formats, seed=settings.seed)
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
            summary["against"] = against(settings, task, found[EDITED], f"{name}.{EDITED}.jsonl")
        summaries.append(summary)
    asked = {name: getattr(settings, name) for name in ("seed", "limit", "formats")}
    whole = about | asked | {"tasks": summaries}
    path = settings.out / "summary.json"
    with write_errors(path):
        path.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return whole


def file_names(tasks: Sequence[Task]) -> list[str]:
    """A name for each task's files, of its kind and source; the second of the same name is numbered."""
    found: list[str] = []
    for task in tasks:
        stem = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in task.label)
        name, number = f"{task.kind}-{stem}", 2
        while name in found:
            name, number = f"{task.kind}-{stem}-{number}", number + 1
        found.append(name)
    return found


def run_task(settings: EvaluateSettings, task: Task, role: str, loaded: LoadedModel, file: str) -> list[Result]:
    """Results of all items, those of an earlier, interrupted run among them."""
    path = settings.out / file
    if settings.overwrite:
        path.unlink(missing_ok=True)
    # The authors' code draws one number for a whole call, which the runtime lets have one row only.
    batch_size = 1 if loaded.settings.get("compat") == "official" else settings.batch_size
    records = Records(path, header(settings, task, role, loaded) | {"batch_size": batch_size}, task.items)
    batches = task.batches(batch_size)
    todo = [rows for rows in batches if not all(row in records.results for row in rows)]
    what = f"{role}: {task.kind} {task.label}"
    with tqdm(
        total=len(task.items),
        initial=len(task.items) - sum(map(len, todo)),
        desc=what,
        unit="item",
        disable=True if settings.quiet else None,
        leave=False,
    ) as bar:

        def run(rows: list[int]) -> list[Result]:
            # For the authors' code, which alone draws from torch here.
            torch.manual_seed(settings.seed + rows[0])
            return task.run(loaded, rows)

        for done, results in run_batches(todo, run, f"{task.kind} {task.label}"):
            records.append(done, results)
            bar.update(len(done))
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


def against(settings: EvaluateSettings, task: Task, results: Sequence[Result], file: str) -> dict[str, Any]:
    """The checkpoint's results beside those of an earlier evaluation, on the items that both have."""
    assert settings.against is not None
    path = settings.against / file
    if not path.is_file():
        raise BadInput(f"--against: {settings.against.name} has no {file}, so nothing to compare with")
    earlier = read_by_item(path)
    both = list(pairs(task.items, results, earlier))
    if not both:
        raise BadInput(f"--against: {file} there has none of these items")
    first, second = ([each[place] for each in both] for place in (0, 1))
    return {"items": len(both)} | compared(task, {BASE: first, EDITED: second}, settings.seed)["difference"]


def pairs(
    items: Sequence[Any], results: Sequence[Result], earlier: dict[str, Result]
) -> Iterator[tuple[Result, Result]]:
    for item, result in zip(items, results, strict=True):
        if item.sha256 in earlier:
            yield earlier[item.sha256], result
