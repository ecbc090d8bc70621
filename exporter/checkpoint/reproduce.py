"""`reproduce/` in a checkpoint: what is needed to make it again and to check it; no path and no prompt text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from exporter.checkpoint.environment import environment
from exporter.checkpoint.findings import Findings, Plan
from exporter.checkpoint.layout import HASHES, PROMPTS, RECIPE, REPRODUCE, STATISTICS, SUMMARY, VERSIONS
from exporter.checkpoint.recipe import recipe_toml
from exporter.checkpoint.shards import file_sha256
from exporter.checkpoint.summary import Summary
from exporter.checkpoint.tensors import write_tensors
from exporter.common.files import write_json
from exporter.methods.outcome import SkillOutcome
from exporter.prompts.formats import Query
from exporter.prompts.region_parts import SIDES
from exporter.prompts.skills import SkillPlan
from exporter.prompts.turns import FIT, REPORT


def write_reproduce(folder: Path, plan: Plan, findings: Findings, summary: Summary, hashes: dict[str, str]) -> None:
    """Write the folder, after all other files of the checkpoint.

    hashes: sha256 by file name of the base's weight files, if fingerprints were taken while they were copied.
    """
    settings, outcomes = plan.settings, findings.outcomes
    (folder / REPRODUCE).mkdir(exist_ok=True)  # what is kept of the base lies in it already
    versions = environment(settings) | {"batches_halved": findings.halved}
    recipe = recipe_toml(settings, plan.skills, plan.base, versions["threads"])
    (folder / RECIPE).write_text(recipe, encoding="utf-8")
    write_json(folder / VERSIONS, versions)
    write_json(folder / SUMMARY, summary.to_json())
    write_json(folder / PROMPTS, {outcome.skill.name: prompt_records(outcome) for outcome in outcomes})
    tensors = {
        f"{outcome.skill.name}.{name}": tensor.contiguous()
        for outcome in outcomes
        for name, tensor in statistics(outcome).items()
    }
    write_tensors(folder / STATISTICS, tensors)
    write_json(folder / HASHES, all_hashes(folder, hashes))


def all_hashes(folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    """sha256 of every file by its path inside the folder; base weights only where they are known."""
    shards = sorted(folder.glob("model-*.safetensors"))[:-1]  # the last has the interventions
    files = [path for path in folder.rglob("*") if path.is_file() and path not in shards]
    found = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    return dict(sorted((found | dict(known)).items()))


def statistics(outcome: SkillOutcome) -> dict[str, Tensor]:
    """What was found for one skill, by names as in `reproduce/statistics.safetensors`."""
    key_space = outcome.detection or outcome.evidence
    tensors: dict[str, Tensor] = {} if key_space is None else key_space.tensors()
    if outcome.neurons is not None:
        for side, found in (("forget", outcome.neurons.forget), ("retain", outcome.neurons.retain)):
            tensors |= {
                f"na.{side}.mean": found.gaussian.mean,
                f"na.{side}.deviation": found.gaussian.deviation,
                f"na.{side}.magnitude": found.magnitude,
            }
    return tensors


def prompt_records(outcome: SkillOutcome) -> dict[str, list[dict[str, Any]]]:
    """Prompts and texts of every part of one skill, in the order of the score rows of `statistics.safetensors`."""
    evidence = outcome.evidence
    if evidence is None:
        return part_records(outcome.plan, outcome.plan.forget.fit)
    unseen = {
        "forget.choose.unseen": evidence.choose_unseen.queries,
        "forget.report.unseen": evidence.report_unseen.queries,
        "retain.choose.others": evidence.retain_others.queries,
    }
    return part_records(outcome.plan, evidence.fitted, unseen)


def part_records(
    plan: SkillPlan, fitted: Sequence[Query], unseen: Mapping[str, Sequence[Query]] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The same from a plan. fitted: the fit part in the formats of the fit; unseen: parts beyond those of the plan. Of
    regions along discriminants the plan has all parts."""
    if plan.parts is not None:
        return {
            f"{side}.{name}": records(getattr(getattr(plan.parts, name), field))
            for name in (FIT, REPORT)
            for field, side in SIDES.items()
        } | text_records(plan)
    parts: dict[str, Sequence[Query]] = {
        "forget.fit": fitted,
        "forget.choose": plan.forget.choose,
        "forget.calibrate": plan.forget.calibrate,
        "forget.report": plan.forget.report,
        "retain.choose": plan.retain.choose,
        "retain.report": plan.retain.report,
        **(unseen or {}),
    }
    return {name: records(part) for name, part in parts.items()} | text_records(plan)


def text_records(plan: SkillPlan) -> dict[str, list[dict[str, Any]]]:
    """Whole texts by part, where neurons are changed."""
    if plan.texts is None:
        return {}
    sides = ("forget", "retain", "everyday")
    return {
        f"texts.{side}.{name}": records(part) for side in sides for name, part in getattr(plan.texts, side).items()
    }


def records(queries: Sequence[Query]) -> list[dict[str, Any]]:
    """Prompts by source, row and sha256."""
    return [
        {
            "source": query.prompt.source,
            "row": query.prompt.row,
            "sha256": query.prompt.sha256,
            "format": query.format,
            "variant": query.variant,
            "tokens": len(query.ids),
        }
        for query in queries
    ]
