"""Settings, prompts and parts of a checkpoint's export, from sources that are given again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from exporter.checkpoint.given_prompts import as_exported
from exporter.checkpoint.reading import Stored, StoredSkill
from exporter.checkpoint.reproduce import part_records
from exporter.checkpoint.summary import KeySpaceSummary, SourceSummary
from exporter.common.errors import BadInput
from exporter.common.text import Notify
from exporter.onnx.settings import OnnxSettings
from exporter.prompts.formats import Formatter
from exporter.prompts.skills import SkillPlan, SkillPrompts, collect_from
from exporter.prompts.sources import Source, fingerprint
from exporter.recipes.recorded import text_sha256
from exporter.recipes.settings import ExportSettings, SkillSettings
from exporter.recipes.templates import read_template

Fingerprinted = tuple[Source, str]
FLAGS = ("--forget", "--retain")


@dataclass(frozen=True)
class Exported:
    """What the checkpoint was exported with.

    plans: of its skills, of which at most one adjusts neurons; known: the export's summary of each skill's key space;
    eos: ids that end an answer; key_size: d_ff.
    """

    settings: ExportSettings
    formatter: Formatter
    plans: Sequence[SkillPlan]
    known: Mapping[str, KeySpaceSummary]
    pad_id: int
    bos_id: int | None
    eos: Sequence[int]
    key_size: int


def export_again(stored: Stored, settings: OnnxSettings, notify: Notify) -> tuple[ExportSettings, list[SkillPrompts]]:
    """Settings and prompts of the export, from its recipe, with the changes that the flags of `unskill onnx` make;
    notify is told how sources are read.

    Raises BadInput where a given source is not one of the export's (by sha256 and options) or one of those is missing,
    and for other system prompts or another prompt template.
    """
    recipe = stored.recipe
    if described := [skill["name"] for skill in recipe["skills"] if skill["describe"] is not None]:
        raise BadInput(f"--quantize: {described[0]} is from a description, whose prompts are not fitted anew yet")
    if [text_sha256(text) for text in settings.system_prompts] != recipe["system_prompts"]:
        raise BadInput(
            f"--system-prompt: the export had {len(recipe['system_prompts'])} of its own (sha256); give the same "
            "texts in the same order"
        )
    given = settings.prompt_template
    if given is not None and read_template(given, "--prompt-template") != recipe["prompt_template"]:
        raise BadInput("--prompt-template: is not the export's, on which the regions were fitted; leave it out")
    sources_given = {flag: read_fingerprints(stored, settings, flag) for flag in FLAGS}
    found = []
    for skill in recipe["skills"]:
        forget, retain = (matched(skill["sources"], sources_given[flag], flag) for flag in FLAGS)
        found.append(collect_from(skill_settings(skill, settings), forget, retain, notify))
    values = {field.name: recipe[field.name] for field in fields(ExportSettings) if field.name in recipe}
    values |= {"out": settings.out, "skills": tuple(each.skill for each in found), "batch_size": None}
    values |= {name: getattr(settings, name) for name in ("system_prompts", "force", "quiet")}
    return ExportSettings(**values), found


def skill_settings(recipe: Mapping[str, Any], settings: OnnxSettings) -> SkillSettings:
    """One skill's settings, with the labels of its sources; the sources themselves are read elsewhere."""
    values = {field.name: recipe[field.name] for field in fields(SkillSettings) if field.name in recipe}
    values["everyday_without"] = tuple(values["everyday_without"])
    for flag in FLAGS:
        values[flag.removeprefix("--")] = tuple(each["label"] for each in recipe["sources"] if each["flag"] == flag)
    if settings.max_false_block is not None:
        values["max_false_block"] = settings.max_false_block
    return SkillSettings(**values)


def read_fingerprints(stored: Stored, settings: OnnxSettings, flag: str) -> list[Fingerprinted]:
    """The sources given to one flag, each with every set of options that the export may have read it with.

    Raises BadInput for one that the export did not read.
    """
    wanted = [each for skill in stored.recipe["skills"] for each in skill["sources"] if each["flag"] == flag]
    found = []
    for spec in settings.forget if flag == "--forget" else settings.retain:
        ways = [(source, fingerprint(source, flag)) for source in as_exported(stored, spec, flag)]
        fitting = [way for way in ways if any(is_source(way, each) for each in wanted)]
        if not fitting:
            raise BadInput(
                f"{flag} {ways[0][0].label}: is not what the export read under this name (sha256, column, answer or "
                "limit); the interventions can be fitted anew on the export's own prompts only"
            )
        found += fitting
    return found


def is_source(given: Fingerprinted, record: Mapping[str, Any]) -> bool:
    source, digest = given
    same = source.label == SourceSummary.model_validate(record).name and digest == record["fingerprint"]
    return same and source.options == record["options"]


def matched(wanted: Sequence[Mapping[str, Any]], given: Sequence[Fingerprinted], flag: str) -> list[Source]:
    """The sources of one skill in the order of the export, on which their labels depend."""
    found = []
    for record in (each for each in wanted if each["flag"] == flag):
        source = next((source for source, digest in given if is_source((source, digest), record)), None)
        if source is None:
            raise BadInput(
                f"{flag}: give {record['label']} again, with all other sources of the export: the interventions are "
                "fitted anew on their prompts"
            )
        found.append(source)
    return found


def check_parts(stored: StoredSkill, plan: SkillPlan, formatter: Formatter, version: str) -> None:
    """Raises BadInput where a part differs from the export's in any prompt. version: of the unskill that exported."""
    fit = plan.forget.fit
    hypercubes = plan.skill.blocks and plan.parts is None
    fitted = formatter.in_each_format(fit, "--forget") if hypercubes else fit
    for name, part in part_records(plan, fitted).items():
        if part != stored.prompts[name]:
            raise BadInput(
                f"CHECKPOINT: part {name} of {plan.skill.name} is not what the export had, though the sources are; it "
                f"was made by unskill {version}: use that one, or export anew"
            )
