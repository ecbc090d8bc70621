"""From sources to tasks: sources are read before a model is loaded, tasks made with its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field

from exporter.common.errors import BadInput
from exporter.common.text import Notify
from exporter.evaluation.generation import Generation, Programs, Questions, Sums
from exporter.evaluation.items import Item, read_items, sample
from exporter.evaluation.scoring import Choices, Perplexity, Refusals, check_choices
from exporter.evaluation.settings import COLUMNS
from exporter.evaluation.tasks import Task
from exporter.models.loading import LoadedModel
from exporter.models.tokens import context_of
from exporter.prompts.formats import Formatter
from exporter.prompts.sources import Prompt, Source, load_prompts
from exporter.prompts.splits import deduplicate
from exporter.prompts.texts import answer_starts, as_texts

WRITTEN: dict[str, type[Generation]] = {"gsm8k": Sums, "code": Programs, "qa": Questions}


@dataclass(frozen=True)
class Read:
    """A sample of a source: prompts or, for tasks with columns of their own, items; `found`: how many there were;
    `shots`: solved examples."""

    kind: str
    label: str
    found: int
    prompts: list[Prompt] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    shots: list[Item] = field(default_factory=list)


def read_source(kind: str, spec: str, shots: str | None, limit: int | None, seed: int, notify: Notify) -> Read:
    """Read a SOURCE of one of KINDS; notify is told how prompts are read. Raises BadInput where it is not what the
    task needs."""
    flag = f"--{kind}"
    source = Source.parse(spec, flag)
    label = source.label
    if kind not in COLUMNS:
        prompts = deduplicate(load_prompts(source, flag, notify))
        return Read(kind, label, len(prompts), prompts=sample(prompts, limit, seed))
    items, solved = read_items(spec, flag, *COLUMNS[kind]), []
    columns = items[0].fields.keys()
    if kind == "choice":
        check_choices(items, flag)
        if shots is not None:
            solved = read_items(shots, "--shots", *COLUMNS[kind])
            check_choices(solved, "--shots")
    if kind == "qa" and not {"answers", "answer"} & columns:
        raise BadInput(f"{flag} {label}: has no column 'answers' or 'answer'")
    if kind == "code" and not (columns >= {"text", "test_list"} or columns >= {"prompt", "test", "entry_point"}):
        raise BadInput(
            f"{flag} {label}: has neither the columns text and test_list (MBPP) nor prompt, test and entry_point "
            "(HumanEval)"
        )
    return Read(kind, label, len(items), items=sample(items, limit, seed), shots=solved)


def make_task(loaded: LoadedModel, formatter: Formatter, read: Read) -> Task:
    """The task for models with this model's tokenizer. Raises BadInput for items longer than its context."""
    flag, context = f"--{read.kind}", context_of(loaded.model)
    if read.kind in ("forget", "retain"):
        return Refusals(read.kind, read.label, formatter.format(read.prompts, flag), read.found)
    if read.kind == "text":
        texts = as_texts(loaded.tokenizer, read.prompts, flag, context)
        return Perplexity(read.label, texts, answer_starts(loaded.tokenizer, texts), read.found)
    task: Task
    if read.kind == "choice":
        task = Choices(read.label, read.items, read.shots, loaded.tokenizer, read.found)
    else:
        task = WRITTEN[read.kind](read.label, read.items, formatter, read.found)
    task.check_length(context, flag)
    return task
