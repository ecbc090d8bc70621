"""One skill on its way through an export: its prompts and texts in parts, and in the end what was found for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from exporter.common.errors import BadInput
from exporter.common.text import Notify
from exporter.prompts.formats import Formatter, Query
from exporter.prompts.packaged import EVERYDAY, everyday_prompts
from exporter.prompts.sources import Prompt, Source, fingerprint, load_prompts
from exporter.prompts.splits import (
    CALIBRATE_AT_LEAST,
    ForgetParts,
    RetainParts,
    check_disjoint,
    deduplicate,
    split_forget,
    split_retain,
)
from exporter.prompts.texts import as_texts, forget_texts, retain_texts
from exporter.recipes.settings import ExportSettings, SkillSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MINIMUM_FORGET, MINIMUM_FORGET_GIVEN = 60, 20
# Prompts of each other skill on which a skill's layer is chosen, as on retain prompts.
OTHERS = 40


@dataclass(frozen=True)
class SourceRecord:
    """One --forget or --retain source as `reproduce/` and the summary name it: no path, no text.

    `number`: of several sources of one name, which it is; from the second on its label ends with it, as in "a.csv #2".
    """

    flag: str
    label: str
    options: dict[str, str | int]
    fingerprint: str
    prompts: int
    number: int = 1


@dataclass(frozen=True)
class SkillPrompts:
    """Prompts of one skill, without repetitions, and where they come from; `retain` with the everyday prompts.

    `sources`: as they were given, one for each of `records`.
    """

    skill: SkillSettings
    forget: tuple[Prompt, ...]
    retain: tuple[Prompt, ...]
    records: tuple[SourceRecord, ...]
    sources: tuple[Source, ...]

    @property
    def minimum(self) -> int:
        given = self.skill.given if self.skill.blocks else self.skill.beta is not None
        return MINIMUM_FORGET_GIVEN if given else MINIMUM_FORGET

    @property
    def calibrate_at_least(self) -> int:
        # For neurons always, so that the fit part, and statistics of it, are the same for all methods.
        given = self.skill.blocks and self.skill.alpha is not None
        return 0 if given and not self.skill.changes_neurons else CALIBRATE_AT_LEAST


@dataclass(frozen=True)
class SkillTexts:
    """Whole texts of one skill by their parts: "fit", "choose" and "report". Everyday prompts may be none."""

    forget: Mapping[str, Sequence[Query]]
    retain: Mapping[str, Sequence[Query]]
    everyday: Mapping[str, Sequence[Query]]


@dataclass(frozen=True)
class SkillPlan:
    """One skill's queries, and its texts where neurons are changed.

    `held_out`: forget prompts that other skills may look at: for their layer, and for the report.
    """

    prompts: SkillPrompts
    forget: ForgetParts[Query]
    retain: RetainParts[Query]
    held_out: RetainParts[Prompt]
    texts: SkillTexts | None = None

    @property
    def skill(self) -> SkillSettings:
        return self.prompts.skill


def collect(skill: SkillSettings) -> SkillPrompts:
    """Read a skill's sources. Raises BadInput as these do, and where forget and retain prompts are mostly the same."""
    forget, retain = (
        [Source.parse(spec, flag) for spec in specs]
        for flag, specs in (("--forget", skill.forget), ("--retain", skill.retain))
    )
    return collect_from(skill, forget, retain)


def collect_from(
    skill: SkillSettings, forget_sources: Sequence[Source], retain_sources: Sequence[Source]
) -> SkillPrompts:
    """The same of sources that have been parsed, in the order of the export."""
    records: list[SourceRecord] = []
    forget = read("--forget", forget_sources, records)
    retain = read("--retain", retain_sources, records)
    if retain:
        check_disjoint(forget, retain)
    if skill.everyday:
        retain = retain + everyday_prompts(skill.everyday_without)
    forget = deduplicate(forget)
    known = {prompt.text for prompt in forget}
    kept = [prompt for prompt in deduplicate(retain) if prompt.text not in known]
    return SkillPrompts(skill, tuple(forget), tuple(kept), tuple(records), (*forget_sources, *retain_sources))


def read(flag: str, sources: Sequence[Source], records: list[SourceRecord]) -> list[Prompt]:
    prompts: list[Prompt] = []
    for source in sources:
        loaded = load_prompts(source, flag)
        # Two folders may hold files of one name, and paths are told nowhere.
        taken = {record.label for record in records if record.flag == flag}
        label, number = source.label, 1
        while label in taken:
            number += 1
            label = f"{source.label} #{number}"
        records.append(SourceRecord(flag, label, source.options, fingerprint(source, flag), len(loaded), number))
        prompts += [replace(prompt, source=label) for prompt in loaded]
    return prompts


def make_plans(
    skills: Sequence[SkillPrompts],
    formatter: Formatter,
    tokenizer: PreTrainedTokenizerBase,
    settings: ExportSettings,
    max_length: int | None,
    notify: Callable[[str], None],
) -> list[SkillPlan]:
    """Format and split every skill's prompts; with several skills, each has the others' among those to leave alone.

    Raises BadInput for too few prompts, and for those that are too long (see `Formatter`).
    """
    plans = []
    for prompts in skills:
        forget = split_forget(
            formatter.format(prompts.forget, "--forget"),
            settings.seed,
            minimum=prompts.minimum,
            calibrate_at_least=prompts.calibrate_at_least,
        )
        retain = split_retain(formatter.format(prompts.retain, "--retain"), settings.seed)
        name = f"skill {prompts.skill.name}"
        held_out = RetainParts(
            renamed([*forget.choose, *forget.fit][:OTHERS], name), renamed(forget.report[:OTHERS], name)
        )
        texts = make_texts(prompts.skill, forget, retain, tokenizer, max_length)
        plans.append(SkillPlan(prompts, forget, retain, held_out, texts))
    if formatter.skipped:
        notify(f"{formatter.skipped} prompts are longer than the model's context and were left out (--skip-long).")

    def with_others(plan: SkillPlan) -> SkillPlan:
        choose, report = list(plan.retain.choose), list(plan.retain.report)
        own = {query.prompt.text for query in (*choose, *report)}
        for other in plans:
            if other is not plan:
                for part, into in ((other.held_out.choose, choose), (other.held_out.report, report)):
                    fresh = [prompt for prompt in part if prompt.text not in own]
                    into += formatter.format(fresh, "--forget") if fresh else []
        return replace(plan, retain=RetainParts(tuple(choose), tuple(report)))

    return [with_others(plan) if plan.skill.blocks else plan for plan in plans]


def renamed(queries: Sequence[Query], source: str) -> tuple[Prompt, ...]:
    return tuple(replace(query.prompt, source=source) for query in queries)


def make_texts(
    skill: SkillSettings,
    forget: ForgetParts[Query],
    retain: RetainParts[Query],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
) -> SkillTexts | None:
    """The texts of a skill that changes neurons, of the prompts in the parts. Raises BadInput where there are none."""
    if not skill.changes_neurons:
        return None

    def prompts(part: Sequence[Query], everyday: bool) -> tuple[Prompt, ...]:
        return tuple(query.prompt for query in part if (query.prompt.source == EVERYDAY) is everyday)

    def texts(part: Sequence[Prompt], flag: str) -> list[Query]:
        return as_texts(tokenizer, part, flag, max_length)

    ours = forget_texts(
        ForgetParts(*(prompts(part, False) for part in (forget.fit, forget.choose, forget.calibrate, forget.report))),
        skill.blocks,
    )
    others, everyday = (
        retain_texts(RetainParts(prompts(retain.choose, packaged), prompts(retain.report, packaged)), skill.blocks)
        for packaged in (False, True)
    )
    if not others.fit or not others.choose or not others.report:
        raise BadInput("--retain: too few different texts to choose neurons by; at least 20 are needed")
    return SkillTexts(
        {name: texts(getattr(ours, name), "--forget") for name in ("fit", "choose", "report")},
        {name: texts(getattr(others, name), "--retain") for name in ("fit", "choose", "report")},
        {name: texts(getattr(everyday, name), "everyday") for name in ("fit", "choose", "report")},
    )


def read_skills(settings: ExportSettings) -> list[SkillPrompts]:
    """Every skill's prompts. What can be wrong without the model is found before torch is imported."""
    skills = [collect(skill) for skill in settings.skills]
    for each in skills:
        split_forget(each.forget, settings.seed, minimum=each.minimum)
    return skills


def prepare_for(
    skills: Sequence[SkillPrompts],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    settings: ExportSettings,
    notify: Notify,
) -> tuple[Formatter, list[SkillPlan]]:
    """The same for a tokenizer alone; max_length: see `Formatter`."""
    formatter = Formatter(
        tokenizer,
        template=settings.prompt_template if settings.blocks else "{prompt}",
        formats=settings.formats,
        system_prompts=settings.system_prompts,
        seed=settings.seed,
        max_length=max_length,
        skip_long=settings.skip_long,
    )
    plans = make_plans(skills, formatter, tokenizer, settings, max_length, notify)
    for text in formatter.notes:
        notify(text)
    return formatter, plans
