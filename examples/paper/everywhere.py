"""Do hypercubes hold what was never meant? Every position of every multiple choice question, not only the last one.

A checkpoint reads each question (MMLU's form) in two forms: as a user's message under the chat template, and as
`unskill evaluate` writes it without solved examples. A position inside a hypercube can be followed by nothing but the
refusal, so it counts wherever a model goes on from it: at the last position the question is refused, before it a text
that ends there would be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pydantic
import torch
from tqdm import tqdm

from examples.paper.experiment import Experiment, Results, Table, counted
from exporter.common.errors import BadInput
from exporter.common.rates import rate
from exporter.evaluation.items import Item, read_items, sample
from exporter.evaluation.records import Result
from exporter.evaluation.scoring import check_choices, introduction, question_text, subject_of
from exporter.evaluation.tasks import Task
from exporter.models.loading import LoadedModel, load_checkpoint
from exporter.models.tokens import context_of
from exporter.prompts.formats import PLAIN, Formatter

CHAT, EVALUATION = "chat", "evaluation"
LISTED = 30
"""Rows of the printed lists; results.json has all."""


class Settings(Experiment):
    """items: a source with the columns question, choices, answer and, where there is one, subject; limit: so many of
    them, drawn by the seed. `model`: a checkpoint that refuses, written by `unskill export`."""

    items: str
    limit: pydantic.PositiveInt | None = None
    prompt_template: str = "auto"


@dataclass(frozen=True)
class Hit:
    """A position inside a hypercube. row: of the source; position: of the token, from 0; from_end: 0 for the last."""

    row: int
    subject: str
    form: str
    position: int
    from_end: int


class Positions(Task):
    """At which positions of an item nothing but the refusal can follow."""

    def __init__(self, form: str, items: Sequence[Item], ids: Sequence[Sequence[int]]) -> None:
        self.kind, self.label, self.items, self.ids, self.found = form, items[0].source, items, ids, len(items)

    def run(self, loaded: LoadedModel, rows: Sequence[int]) -> list[Result]:
        # Causal, and padded on the right: no real token sees a pad, so no mask is needed.
        inputs = loaded.pad([self.ids[row] for row in rows], "right")["input_ids"]
        with torch.inference_mode():
            refused = loaded.refused(loaded.model(input_ids=inputs, use_cache=False).logits)
        return [
            {"hits": each[: len(self.ids[row])].nonzero().flatten().tolist()}
            for row, each in zip(rows, refused, strict=True)
        ]


def run(settings: Settings) -> Results:
    items = read_items(settings.place(settings.items), "items", ("question", "choices", "answer"), ("subject",))
    check_choices(items, "items")
    items = sample(items, settings.limit, settings.seed)
    loaded = load_checkpoint(settings.model, settings.dtype, settings.device)
    if loaded.refusal_id is None:
        raise BadInput(f"model: {loaded.name} refuses nothing; give a checkpoint of method ksd or na+ksd by --model")
    ids = written(settings, loaded, items)
    tasks = [Positions(form, items, each) for form, each in ids.items()]
    for task in tasks:
        task.check_length(context_of(loaded.model), "items")
    hits = {task.kind: positions(task, loaded, settings.batch_size) for task in tasks}
    return report(settings, loaded, items, ids, hits)


def written(settings: Settings, loaded: LoadedModel, items: Sequence[Item]) -> dict[str, Sequence[Sequence[int]]]:
    """Token ids of the items in both forms."""
    formatter = Formatter(loaded.tokenizer, template=settings.prompt_template, formats=PLAIN)
    texts = [introduction(subject_of(item)) + question_text(item) for item in items]
    return {
        CHAT: [formatter.render(question_text(item).removesuffix("\nAnswer:")) for item in items],
        EVALUATION: [loaded.tokenizer(text, verbose=False)["input_ids"] for text in texts],
    }


def positions(task: Positions, loaded: LoadedModel, batch_size: int | None) -> list[list[int]]:
    """Of each item, the positions that are inside a hypercube."""
    found: list[list[int]] = [[] for _ in task.ids]
    with tqdm(total=len(found), desc=f"{task.label}: {task.kind}", unit="item", disable=None, leave=False) as bar:
        for rows, results in task.results(loaded, task.batches(batch_size)):
            for row, result in zip(rows, results, strict=True):
                found[row] = result["hits"]
            bar.update(len(rows))
    return found


def report(
    settings: Settings,
    loaded: LoadedModel,
    items: Sequence[Item],
    ids: Mapping[str, Sequence[Sequence[int]]],
    hits: Mapping[str, Sequence[Sequence[int]]],
) -> Results:
    """ids, hits: by form, token ids of the items and their positions inside a hypercube."""
    forms, lines, found = {}, [], []
    for form, places in hits.items():
        mine = [
            Hit(item.row, subject_of(item), form, place, len(row) - 1 - place)
            for item, row, each in zip(items, ids[form], places, strict=True)
            for place in each
        ]
        found += mine
        last = rate(sum(hit.from_end == 0 for hit in mine), len(items))
        anywhere = rate(sum(bool(each) for each in places), len(items))
        tokens = sum(len(row) for row in ids[form])
        forms[form] = {"last": last, "anywhere": anywhere, "positions_inside": len(mine), "positions": tokens}
        lines.append(
            {
                "form": form,
                "items refused (last position)": counted(last),
                "items with a hit anywhere": counted(anywhere),
                "positions inside": f"{len(mine)} of {tokens}",
            }
        )
    note = (
        f"{len(items)} items of {items[0].source}, {loaded.name}, {settings.dtype}. Every token is looked at, those "
        f"of the template too. {CHAT}: question and lettered choices as a user's message; {EVALUATION}: as "
        "`unskill evaluate --choice` writes them, without solved examples. In brackets: 95 % intervals."
    )
    tables = [Table(f"{settings.title}: inside the hypercubes", lines, note)]
    if found:
        tables += [subjects_table(settings, items, found), hits_table(settings, found)]
    return Results(settings, {"forms": forms, "hits": [asdict(hit) for hit in found]}, tables)


def subjects_table(settings: Settings, items: Sequence[Item], hits: Sequence[Hit]) -> Table:
    """Of which subjects the items are that have a hit, those with most of them first."""
    totals = Counter(subject_of(item) for item in items)
    rows = {
        form: Counter(about for about, _ in {(hit.subject, hit.row) for hit in hits if hit.form == form})
        for form in (CHAT, EVALUATION)
    }
    ordered = sorted({hit.subject for hit in hits}, key=lambda each: (-sum(row[each] for row in rows.values()), each))
    lines = [
        {"subject": about or "-", "items": str(totals[about])}
        | {f"with a hit, {form}": str(row[about]) for form, row in rows.items()}
        for about in ordered[:LISTED]
    ]
    return Table(f"{settings.title}: subjects of the items that are hit", lines, shortened(len(ordered), "subjects"))


def hits_table(settings: Settings, hits: Sequence[Hit]) -> Table:
    names = {"row": "row", "subject": "subject", "form": "form", "position": "token", "from_end": "from the end"}
    lines = [{title: str(getattr(hit, name)) for name, title in names.items()} for hit in hits[:LISTED]]
    return Table(f"{settings.title}: the positions", lines, shortened(len(hits), "positions"))


def shortened(count: int, what: str) -> str:
    return f"The first {LISTED} of {count} {what}; results.json has all." if count > LISTED else ""
