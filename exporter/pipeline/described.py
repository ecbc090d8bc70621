"""Skills from a description: a model writes their prompts, before anything is fitted on its keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from exporter.checkpoint.findings import Plan
from exporter.common.files import write_errors
from exporter.common.progress import Progress
from exporter.common.text import Notify
from exporter.models.loading import LoadedModel
from exporter.models.prober import Prober
from exporter.pipeline.prompt_warnings import of_prompts
from exporter.prompts.formats import PLAIN, SECOND_TURN, Query
from exporter.prompts.packaged import Exchange
from exporter.prompts.requests import (
    BEGUN,
    FORGET,
    NEAR_MISS,
    TOPICS,
    Question,
    items_of,
    kind_of,
    prompt_requests,
    topic_question,
)
from exporter.prompts.skills import SkillPrompts, check_enough, with_written
from exporter.prompts.sources import Prompt
from exporter.prompts.written import Candidate, Written, usable
from exporter.recipes.settings import ExportSettings, SkillSettings

ANSWER_TOKENS = 256
"""Most tokens of one list."""
TOPIC_LENGTH = 100
"""Most characters of a sub-topic."""

Write = Callable[[Sequence[Question], str], list[list[str]]]
"""Write lists: questions and a name for the progress bar -> the items that each was answered with."""


def describe(plan: Plan, writer: LoadedModel, notify: Notify, progress: Progress) -> Plan:
    """The plan with the prompts that a model writes for the skills that are described.

    Raises BadInput where too few of them are usable, RunFailed where --save-prompts cannot be written.
    """
    write = writer_of(writer, plan.settings, progress)
    skills = [
        with_new_prompts(each, write, writer.name, notify) if each.skill.to_write else each for each in plan.skills
    ]
    check_enough(skills, plan.settings.seed)
    for each in skills:
        if (path := each.skill.save_prompts) is not None and each.written is not None:
            with write_errors(path):
                path.write_text(each.written.text, encoding="utf-8")
            notify(f"{each.skill.name}: the prompts are kept in {path}")
    warnings = of_prompts(skills)
    for warning in warnings:
        if warning not in plan.warnings:
            notify(f"warning: {warning.message}")
    return replace(plan, skills=tuple(skills), warnings=tuple(warnings))


def with_new_prompts(prompts: SkillPrompts, write: Write, name: str, notify: Notify) -> SkillPrompts:
    candidates = write_candidates(prompts.skill, write)
    skill = prompts.skill
    kept = usable(candidates, [text for text in (skill.describe, skill.but_not) if text is not None])
    written = Written.of(kept)
    written.check(f"--describe: {name} wrote")
    notify(
        f"{skill.name}: {name} wrote {len(written.forget)} usable forget prompts and {len(written.near_misses)} near "
        f"misses; {len(candidates) - len(kept)} other lines were left out."
    )
    return with_written(prompts, written)


def write_candidates(skill: SkillSettings, write: Write) -> list[Candidate]:
    """Everything that a model writes for a description: sub-topics of both sides first, then prompts about them."""
    text = skill.describe or ""
    sides = FORGET, NEAR_MISS
    kinds = [kind_of(side, text, skill.but_not) for side in sides]
    listed = write([topic_question(kind) for kind in kinds], f"{skill.name}: sub-topics")
    requests = []
    for side, kind, items in zip(sides, kinds, listed, strict=True):
        topics = list(dict.fromkeys(filter(is_topic, items)))[:TOPICS]
        requests += prompt_requests(side, kind, topics or [kind])
    answers = write([request.question for request in requests], f"{skill.name}: prompts")
    return [
        Candidate(request.side, request.form, request.language, item)
        for request, items in zip(requests, answers, strict=True)
        for item in items
    ]


def is_topic(item: str) -> bool:
    """Whether an item can name a subject: short and mostly letters, unlike a sum that a weak model gives instead."""
    return len(item) <= TOPIC_LENGTH and 2 * sum(map(str.isalpha, item)) > len(item)


def writer_of(loaded: LoadedModel, settings: ExportSettings, progress: Progress) -> Write:
    """A model that writes lists, sampled with the export's seed."""
    prober = Prober(loaded, settings.batch_size, progress)
    formatter = loaded.formatter()

    def ids_of(question: Question) -> tuple[int, ...]:
        if SECOND_TURN not in formatter.formats_used:
            return formatter.render(question.alone(), assistant_prefill=BEGUN)
        return formatter.render(question.text, history=Exchange(*question.example).messages(), assistant_prefill=BEGUN)

    def write(questions: Sequence[Question], what: str) -> list[list[str]]:
        queries = [
            Query(Prompt(question.text, "request", row), PLAIN, ids_of(question))
            for row, question in enumerate(questions, 1)
        ]
        found = []
        for ids in prober.answers(queries, ANSWER_TOKENS, what, settings.seed):
            items = items_of(BEGUN + loaded.tokenizer.decode(ids, skip_special_tokens=True))
            found.append(items[:-1] if len(ids) == ANSWER_TOKENS else items)  # the last one was cut off
        return found

    return write
