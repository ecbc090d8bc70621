"""What a checkpoint holds about its own export: config.json and `reproduce/`, read without loading the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from exporter.checkpoint.layout import HASHES, PROMPTS, RECIPE, REPRODUCE, STATISTICS, SUMMARY
from exporter.checkpoint.shards import file_sha256
from exporter.checkpoint.summary import SkillSummary, Summary
from exporter.common.errors import BadInput
from exporter.common.files import read_json
from exporter.models.files import find_checkpoint
from exporter.recipes.recipe import RECORDED, merged_settings, read_recipe

# By name: a pattern would also match what is kept of the base, with a tokenizer of up to 30 MB.
FILES = ("config.json", HASHES, SUMMARY, PROMPTS, RECIPE, STATISTICS)
Floats = NDArray[np.float64]
Records = list[dict[str, Any]]

SCORED = {
    "scores.forget.calibrate": "forget.calibrate",
    "scores.forget.report": "forget.report",
    "scores.forget.report.unseen": "forget.report.unseen",
    "scores.retain.report.prompt": "retain.report",
    "scores.retain.report.answer": "retain.report",
}
"""The scores that figures are made of, and the part of `prompts.json` that has their rows."""


@dataclass(frozen=True)
class StoredSkill:
    """One skill: its summary, prompts by part, and statistics, (n, layers) or (layers, d_ff) float64."""

    name: str
    summary: SkillSummary
    prompts: Mapping[str, Records]
    tensors: Mapping[str, Floats]


@dataclass(frozen=True)
class Stored:
    """A checkpoint's account of itself. `name`: folder name or Hub id; `unskill`: that object of config.json;
    `recipe`: the settings of the export, with the sha256 of the user's system prompts, and each skill's "sources" as
    in the summary."""

    name: str
    unskill: Mapping[str, Any]
    recipe: Mapping[str, Any]
    summary: Summary
    skills: tuple[StoredSkill, ...]


def read_stored(checkpoint: str) -> Stored:
    """Raises BadInput where unskill did not write CHECKPOINT, or a file of `reproduce/` is missing or altered."""
    folder, name, _, config = find_checkpoint(checkpoint, FILES)
    if not (folder / REPRODUCE).is_dir():
        raise BadInput(f"CHECKPOINT {name} has no {REPRODUCE}/, which holds the numbers of a report")
    hashes, content, prompts = (read_json(folder / file, name, "CHECKPOINT") for file in (HASHES, SUMMARY, PROMPTS))
    if not (folder / RECIPE).is_file():
        raise BadInput(f"CHECKPOINT {name} has no recipe.toml: an older unskill made it, export it again")
    for file in (SUMMARY, PROMPTS, RECIPE):  # unaltered, so their contents need no more checks
        if file_sha256(folder / file) != hashes.get(file):
            raise BadInput(f"CHECKPOINT {name}: {file} is not as the export wrote it (hashes.json)")
    summary = Summary.from_json(content)
    path = folder / STATISTICS
    if not path.is_file():
        raise BadInput(f"CHECKPOINT {name} has no {path.name}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInput(f"CHECKPOINT {name}: {path.name} cannot be read ({error})") from error
    skills = []
    for each in summary.skills:
        prefix = f"{each.name}."
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        skills.append(StoredSkill(each.name, each, prompts[each.name], own))
        _check(skills[-1], f"CHECKPOINT {name}: {path.name}")
    return Stored(name, config["unskill"], _settings(folder / RECIPE, summary), summary, tuple(skills))


def _settings(path: Path, summary: Summary) -> dict[str, Any]:
    """The recipe's settings, with the sources as in the summary."""
    values = read_recipe(path)
    recorded = values.pop(RECORDED)
    settings = asdict(merged_settings(values, {"out": path.parent}))
    del settings["out"]
    settings["system_prompts"] = list(recorded.system_prompts)
    for skill, found in zip(settings["skills"], summary.skills, strict=True):
        skill["sources"] = [source.model_dump() for source in found.sources]
    return settings


def _check(skill: StoredSkill, where: str) -> None:
    """Raises BadInput where a statistic that figures need is missing, not finite, or of other prompts or layers."""
    wanted: dict[str, tuple[int | None, ...]] = {}
    found = skill.summary.key_space
    if found is not None and found.discriminant is None:  # no figures are made of regions along discriminants
        layers = len(found.layers)
        wanted |= {name: (len(skill.prompts[part]), layers) for name, part in SCORED.items()}
        wanted |= {f"ksd.{name}.deviation": (layers, None) for name in found.hypercubes}
    if skill.summary.neurons is not None:
        sides = ("forget", "retain")
        wanted |= {f"na.{side}.{what}": (None, None) for side in sides for what in ("mean", "deviation")}
    for name, shape in wanted.items():
        tensor = skill.tensors.get(name)
        if tensor is None:
            raise BadInput(f"{where} has no {skill.name}.{name}")
        fits = tensor.ndim == len(shape) and all(
            want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype != np.float64 or not np.isfinite(tensor).all():
            raise BadInput(f"{where}: {skill.name}.{name} does not belong to this export's prompts and layers")
