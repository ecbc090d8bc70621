"""The export of a checkpoint once more, from sources that are given again: the same prompts in the same parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.account import Stored, StoredSkill
from exporter.checkpoint.given import as_exported
from exporter.checkpoint.reproduce import records
from exporter.checkpoint.summary import SourceSummary
from exporter.common.errors import BadInput
from exporter.prompts.formats import Formatter
from exporter.prompts.skills import SkillPlan, SkillPrompts, collect_from
from exporter.prompts.sources import Source, fingerprint
from exporter.recipes.recorded import text_sha256
from exporter.recipes.settings import ExportSettings, SkillSettings
from exporter.recipes.templates import read_template

if TYPE_CHECKING:
    from exporter.onnx.settings import OnnxSettings

Fingerprinted = tuple[Source, str]
FLAGS = ("--forget", "--retain")


def export_again(stored: Stored, settings: OnnxSettings) -> tuple[ExportSettings, list[SkillPrompts]]:
    """Settings and prompts of the export, as its recipe has them, with what the flags of `unskill onnx` change.

    Raises BadInput where a source that is given is not one of the export's (by sha256 and by how it is read), where
    one of those is missing, or where system prompts or the prompt template are others.
    """
    recipe = stored.recipe
    if [text_sha256(text) for text in settings.system_prompts] != recipe["system_prompts"]:
        raise BadInput(
            f"--system-prompt: the export had {len(recipe['system_prompts'])} of its own (sha256); give the same "
            "texts in the same order"
        )
    given = settings.prompt_template
    if given is not None and read_template(given, "--prompt-template") != recipe["prompt_template"]:
        raise BadInput("--prompt-template: is not the export's, on which the hypercubes were fitted; leave it out")
    sources_given = {flag: read_fingerprints(stored, settings, flag) for flag in FLAGS}
    found = []
    for skill in recipe["skills"]:
        sources = {flag: matched(skill["sources"], sources_given[flag], flag) for flag in FLAGS}
        found.append(collect_from(skill_settings(skill, settings), sources["--forget"], sources["--retain"]))
    common = {
        field.name: recipe[field.name]
        for field in fields(ExportSettings)
        if field.name in recipe and field.name not in ("skills", "system_prompts", "model")
    }
    export = ExportSettings(
        recipe["model"],
        settings.out,
        tuple(each.skill for each in found),
        system_prompts=settings.system_prompts,
        **common | {"batch_size": None, "force": settings.force, "quiet": settings.quiet},
    )
    return export, found


def skill_settings(recipe: Mapping[str, Any], settings: OnnxSettings) -> SkillSettings:
    """One skill's settings; sources by their labels, for their texts are read elsewhere."""
    values = {field.name: recipe[field.name] for field in fields(SkillSettings) if field.name in recipe}
    values["everyday_without"] = tuple(values["everyday_without"])
    for flag in FLAGS:
        values[flag.removeprefix("--")] = tuple(each["label"] for each in recipe["sources"] if each["flag"] == flag)
    if settings.max_false_block is not None:
        values["max_false_block"] = settings.max_false_block
    return SkillSettings(**values)


def read_fingerprints(stored: Stored, settings: OnnxSettings, flag: str) -> list[Fingerprinted]:
    """The sources given to one flag, each in every way in which the export may have read it.

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
                "limit); the hypercubes can be fitted anew on the export's own prompts only"
            )
        found += fitting
    return found


def is_source(given: Fingerprinted, record: Mapping[str, Any]) -> bool:
    source, digest = given
    same = source.label == SourceSummary.model_validate(record).name and digest == record["fingerprint"]
    return same and source.options == record["options"]


def matched(wanted: Sequence[Mapping[str, Any]], given: Sequence[Fingerprinted], flag: str) -> list[Source]:
    """The sources of one skill in the order of the export, from which their labels come."""
    found = []
    for record in wanted:
        if record["flag"] == flag:
            source = next((way[0] for way in given if is_source(way, record)), None)
            if source is None:
                raise BadInput(
                    f"{flag}: give {record['label']} again, with all other sources of the export: what moves under "
                    "quantized weights is fitted anew on their prompts"
                )
            found.append(source)
    return found


def check_parts(stored: StoredSkill, plan: SkillPlan, formatter: Formatter, version: str) -> None:
    """Raises BadInput where the parts are not those of the export, prompt by prompt; version: of its unskill."""
    blocks = plan.skill.blocks
    parts = {
        "forget.fit": formatter.in_each_format(plan.forget.fit, "--forget") if blocks else plan.forget.fit,
        "forget.choose": plan.forget.choose,
        "forget.calibrate": plan.forget.calibrate,
        "forget.report": plan.forget.report,
        "retain.choose": plan.retain.choose,
        "retain.report": plan.retain.report,
    }
    if plan.texts is not None:
        for side in ("forget", "retain", "everyday"):
            parts |= {f"texts.{side}.{name}": part for name, part in getattr(plan.texts, side).items()}
    for name, part in parts.items():
        if records(part) != stored.prompts[name]:
            raise BadInput(
                f"CHECKPOINT: part {name} of {plan.skill.name} is not what the export had, though the sources are; it "
                f"was made by unskill {version}: use that one, or export anew"
            )
