"""The prompts of each skill: read from its sources, formatted, and split into parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from exporter.common.errors import BadInput
from exporter.common.text import Notify, counted, unheard
from exporter.prompts.formats import Formatter, Query
from exporter.prompts.packaged import EVERYDAY
from exporter.prompts.packaged_skills import everyday_besides, other_prompts, packaged_skill
from exporter.prompts.region_parts import RegionParts, make_parts
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
from exporter.prompts.switches import State
from exporter.prompts.texts import TextParts, as_texts, forget_texts, retain_texts
from exporter.prompts.turns import FIT, REPORT, Said, Turns, deal
from exporter.prompts.written import SOURCE, Written, read_written
from exporter.recipes.effort import EFFORTS
from exporter.recipes.settings import ExportSettings, SkillSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MINIMUM_FORGET, MINIMUM_FORGET_REGIONS, MINIMUM_FORGET_GIVEN = 60, 24, 20
OTHERS = 40
"""Prompts of each other skill on which a skill's layer is chosen and reported, as on retain prompts."""


@dataclass(frozen=True)
class SourceRecord:
    """One --forget, --retain, --skill or --describe source as `reproduce/` and the summary name it: no path, no text.

    `number`: its place among the flag's sources of that name; from the second on the label shows it, as in "a.csv #2".
    """

    flag: str
    label: str
    options: dict[str, str | int]
    fingerprint: str
    prompts: int
    number: int = 1


@dataclass(frozen=True)
class SkillPrompts:
    """Prompts of one skill, without repetitions, and where they come from; `retain` includes the packaged prompts.

    `sources`: as given, one for each of the first `records`; those of packaged skills follow. `notes`: what the user
    should see; `written`: what a model wrote for a description, None before that.
    """

    skill: SkillSettings
    forget: tuple[Prompt, ...]
    retain: tuple[Prompt, ...]
    records: tuple[SourceRecord, ...]
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()
    written: Written | None = None

    @property
    def minimum(self) -> int:
        given = self.skill.given if self.skill.blocks else self.skill.beta is not None
        if given:
            return MINIMUM_FORGET_GIVEN
        regions_alone = self.skill.discriminates and not self.skill.changes_neurons
        return MINIMUM_FORGET_REGIONS if regions_alone else MINIMUM_FORGET

    @property
    def calibrate_at_least(self) -> int:
        # Where neurons are changed always, so that the fit part and its statistics are the same for all methods.
        given = self.skill.blocks and self.skill.alpha is not None
        return 0 if given and not self.skill.changes_neurons else CALIBRATE_AT_LEAST


@dataclass(frozen=True)
class SkillTexts:
    """Whole texts of one skill by part: "fit", "choose" and "report". There may be no everyday prompts."""

    forget: Mapping[str, Sequence[Query]]
    retain: Mapping[str, Sequence[Query]]
    everyday: Mapping[str, Sequence[Query]]


@dataclass(frozen=True)
class SkillPlan:
    """One skill's queries, and its texts where neurons are changed.

    `held_out`: forget prompts that other skills may use, for the choice of their layer and for their report; `parts`:
    of a skill with regions along discriminants, whose `forget` and `retain` are the plain ones among them.
    """

    prompts: SkillPrompts
    forget: ForgetParts[Query]
    retain: RetainParts[Query]
    held_out: RetainParts[Prompt]
    texts: SkillTexts | None = None
    parts: RegionParts | None = None

    @property
    def skill(self) -> SkillSettings:
        return self.prompts.skill


def collect(skill: SkillSettings, notify: Notify = unheard) -> SkillPrompts:
    """Read a skill's sources; notify is told how. Raises BadInput where one cannot be read, or most of one side is on
    the other too."""
    return collect_from(
        skill,
        [Source.parse(spec, "--forget") for spec in skill.forget],
        [Source.parse(spec, "--retain") for spec in skill.retain],
        notify,
    )


def collect_from(
    skill: SkillSettings, forget_sources: Sequence[Source], retain_sources: Sequence[Source], notify: Notify = unheard
) -> SkillPrompts:
    """As `collect`, from parsed sources in the order of the export."""
    records: list[SourceRecord] = []
    forget = read("--forget", forget_sources, records, notify)
    retain = read("--retain", retain_sources, records, notify)
    packaged = [packaged_skill(name) for name in dict.fromkeys(skill.packaged)]
    for each in packaged:
        records.append(SourceRecord("--skill", each.name, {}, each.fingerprint, len(each.forget)))
        forget += each.forget
    check_disjoint(forget, retain)
    notes = []
    if skill.everyday:
        everyday, left_out = everyday_besides(packaged, skill.everyday_without)
        retain += everyday
        if left_out:
            notes.append(f"{skill.name}: {counted(left_out, 'everyday prompt')} left out, as belonging to it.")
    if packaged:
        retain += [prompt for each in packaged for prompt in each.near_misses]
        retain += other_prompts(packaged) if skill.everyday else []
    sources = (*forget_sources, *retain_sources)
    found = SkillPrompts(skill, *sides_of(forget, retain), tuple(records), sources, tuple(notes))
    return found if skill.read_prompts is None else with_written(found, read_written(skill.read_prompts))


def sides_of(forget: Sequence[Prompt], retain: Sequence[Prompt]) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Both sides without repetitions; what stands on both is a forget prompt."""
    ours = deduplicate(forget)
    known = {prompt.text for prompt in ours}
    return tuple(ours), tuple(prompt for prompt in deduplicate(retain) if prompt.text not in known)


def with_written(prompts: SkillPrompts, written: Written) -> SkillPrompts:
    """The prompts of a described skill with those that a model wrote."""
    forget, retain = sides_of([*prompts.forget, *written.forget], [*prompts.retain, *written.near_misses])
    record = SourceRecord("--describe", SOURCE, {}, written.fingerprint, len(written.forget))
    return replace(prompts, forget=forget, retain=retain, records=(*prompts.records, record), written=written)


def read(flag: str, sources: Sequence[Source], records: list[SourceRecord], notify: Notify) -> list[Prompt]:
    prompts: list[Prompt] = []
    for source in sources:
        loaded = load_prompts(source, flag, notify)
        # Two folders may hold files of one name, and paths are recorded nowhere.
        taken = {record.label for record in records if record.flag == flag}
        label, number = source.label, 1
        while label in taken:
            number += 1
            label = f"{source.label} #{number}"
        records.append(SourceRecord(flag, label, source.options, fingerprint(source, flag), len(loaded), number))
        prompts += [replace(prompt, source=label) for prompt in loaded]
    return prompts


def read_skills(settings: ExportSettings, notify: Notify) -> list[SkillPrompts]:
    """Every skill's prompts, but for those that a model is to write. What can be wrong without the model is found
    before torch is imported."""
    skills = [collect(skill, notify) for skill in settings.skills]
    check_enough([each for each in skills if not each.skill.to_write], settings.seed)
    return skills


def check_enough(skills: Sequence[SkillPrompts], seed: int) -> None:
    """Raises BadInput where a skill has too few forget prompts."""
    for each in skills:
        split_forget(each.forget, seed, minimum=each.minimum)


def prepare_for(
    skills: Sequence[SkillPrompts],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    settings: ExportSettings,
    notify: Notify,
) -> tuple[Formatter, list[SkillPlan]]:
    """Format and split every skill's prompts; of several skills, each leaves the others' prompts alone too.

    max_length: see `Formatter`. Raises BadInput for too few prompts, and for prompts that are too long.
    """
    formatter = Formatter(
        tokenizer,
        template=settings.prompt_template if settings.blocks else "{prompt}",
        formats=settings.formats,
        system_prompts=settings.system_prompts,
        states=[State.given(text) for text in settings.template_args],
        seed=settings.seed,
        max_length=max_length,
        skip_long=settings.skip_long,
    )
    plans = []
    for prompts in skills:
        if prompts.skill.discriminates:
            plans.append(plan_regions(prompts, skills, formatter, settings, tokenizer, max_length))
            continue
        forget = split_forget(
            formatter.format(prompts.forget, "--forget"),
            settings.seed,
            minimum=prompts.minimum,
            calibrate_at_least=prompts.calibrate_at_least,
        )
        retain = split_retain(formatter.format(prompts.retain, "--retain"), settings.seed)
        name = f"skill {prompts.skill.name}"
        held_out = RetainParts(
            *(
                tuple(replace(query.prompt, source=name) for query in part[:OTHERS])
                for part in (forget.choose + forget.fit, forget.report)
            )
        )
        texts = make_texts(prompts.skill, forget, retain, tokenizer, max_length)
        plans.append(SkillPlan(prompts, forget, retain, held_out, texts))
    if formatter.skipped:
        notify(f"{formatter.skipped} prompts are longer than the model's context and were left out (--skip-long).")
    for text in (*(note for prompts in skills for note in prompts.notes), *formatter.notes):
        notify(text)

    def with_others(plan: SkillPlan) -> SkillPlan:
        choose, report = list(plan.retain.choose), list(plan.retain.report)
        own = {query.prompt.text for query in (*choose, *report)}
        for other in plans:
            if other is not plan:
                for part, into in ((other.held_out.choose, choose), (other.held_out.report, report)):
                    into += formatter.format([prompt for prompt in part if prompt.text not in own], "--forget")
        return replace(plan, retain=RetainParts(tuple(choose), tuple(report)))

    return formatter, [with_others(plan) if plan.skill.blocks and plan.parts is None else plan for plan in plans]


def plan_regions(
    prompts: SkillPrompts,
    skills: Sequence[SkillPrompts],
    formatter: Formatter,
    settings: ExportSettings,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
) -> SkillPlan:
    """The parts of a skill with regions along discriminants, in all kinds of turn.

    The other skills' forget prompts are to be answered, each in the part that it is in for its own skill. Raises
    BadInput for prompts of the user's that are too long.
    """
    for flag in ("--forget", "--retain"):
        given = {record.label for record in prompts.records if record.flag == flag}
        formatter.check([each for each in (*prompts.forget, *prompts.retain) if each.source in given], flag)
    turns = Turns(formatter, Said(settings.refusal, settings.system_prompts), settings.seed, max_length)
    forget, retain = (deal(each, settings.seed) for each in (prompts.forget, prompts.retain))
    known = {prompt.text for prompt in (*prompts.forget, *prompts.retain)}
    for other in skills:
        if other is not prompts:
            for part, theirs in deal(other.forget, settings.seed).items():
                new = [replace(each, source=f"skill {other.skill.name}") for each in theirs if each.text not in known]
                retain[part] += new[:OTHERS]
    parts = make_parts(forget, retain, turns, settings.seed, EFFORTS[settings.effort])
    ours, others = parts.plain("asked"), parts.plain("answered")
    # Neurons are chosen on every fifth prompt of the fit part, and their statistics are of the others.
    fit = tuple(query for place, query in enumerate(ours[FIT]) if place % 5)
    plain = ForgetParts(fit, ours[FIT][::5], (), ours[REPORT])
    rest = RetainParts(others[FIT], others[REPORT])
    texts = make_texts(prompts.skill, plain, rest, tokenizer, max_length)
    if turns.skipped:
        formatter.notes.append(
            f"{prompts.skill.name}: {turns.skipped} prompts in long conversations or messages exceed the model's "
            "context and were left out."
        )
    held_out = RetainParts((), ())
    return SkillPlan(prompts, plain, rest, held_out, texts, parts)


def make_texts(
    skill: SkillSettings,
    forget: ForgetParts[Query],
    retain: RetainParts[Query],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
) -> SkillTexts | None:
    """The texts of the prompts in the parts, None unless the skill changes neurons. Raises BadInput for too few."""
    if not skill.changes_neurons:
        return None

    def prompts(part: Sequence[Query], packaged: bool) -> tuple[Prompt, ...]:
        return tuple(query.prompt for query in part if (query.prompt.source == EVERYDAY) is packaged)

    def texts(parts: TextParts, flag: str) -> dict[str, list[Query]]:
        return {name: as_texts(tokenizer, part, flag, max_length) for name, part in parts.items()}

    ours = forget_texts(ForgetParts(*(prompts(part, False) for part in vars(forget).values())), skill.blocks)
    others, everyday = (
        retain_texts(RetainParts(prompts(retain.choose, packaged), prompts(retain.report, packaged)), skill.blocks)
        for packaged in (False, True)
    )
    if not all(others.values()):
        raise BadInput("--retain: too few different texts to choose neurons by; at least 20 are needed")
    return SkillTexts(texts(ours, "--forget"), texts(others, "--retain"), texts(everyday, "everyday"))
