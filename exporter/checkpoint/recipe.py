"""The recipe that an export writes to `reproduce/`: its settings, with every default written out.

Settings left at "auto" are chosen again; what was chosen is in the summary. The recipe holds no path outside the
working directory and no text of a prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path, PurePath
from typing import Any

import tomli_w

from exporter.models.files import Base
from exporter.models.headers import read_header
from exporter.prompts.packaged import packaged_sha256
from exporter.prompts.packaged_skills import packaged_files
from exporter.prompts.skills import SkillPrompts, SourceRecord
from exporter.prompts.sources import Source, fingerprint
from exporter.recipes.recipe import COMMON_KEYS, SKILL_KEYS
from exporter.recipes.recorded import text_sha256
from exporter.recipes.settings import ExportSettings, SkillSettings
from exporter.recipes.templates import write_template

# The files of a base that decide what its neurons and tokens are.
DECIDING_FILES: tuple[str, ...] = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
DECIDING_FILES += ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json")
BLOCK = 4096  # bytes

HEADER = """\
# What this checkpoint was made by. It makes the same interventions again, to the byte on a machine like the one that
# versions.json tells of, where every file named here is in the working directory or in a folder given by --data:
#
#     unskill export OUT --recipe recipe.toml --data DIR{system_prompts}
#
# Flags win over what stands here. Files must have the sha256 that they had; of weights the
# beginning, middle and end of every tensor are compared.

"""


def recipe_toml(settings: ExportSettings, skills: Sequence[SkillPrompts], base: Base, threads: int) -> str:
    """The recipe as TOML. threads: the number that torch used."""
    values = {name: getattr(settings, name) for name in COMMON_KEYS.keys() - {"out", "system_prompts"}}
    values |= {"revision": base.revision, "threads": threads}
    values["prompt_template"] = write_template(settings.prompt_template)
    if base.revision or portable(settings.model) != settings.model:
        values["model"] = base.name
    recorded: dict[str, Any] = {"system_prompts": [text_sha256(text) for text in settings.system_prompts]}
    if settings.statistics is not None:
        values["statistics"] = portable(str(settings.statistics))
        recorded["statistics"] = fingerprint(Source(str(settings.statistics)), "--statistics")
    if settings.generator is not None:
        values["generator"] = portable(settings.generator)
    for name in ("revision", "statistics", "compat", "generator"):  # that there is none is not "auto"
        if values[name] is None:
            del values[name]
    order = [field.name for field in fields(ExportSettings)]
    common = {name: written(values[name]) for name in order if name in values}
    content = common | {"skill": [skill_table(each) for each in skills]}
    recorded["packaged"] = packaged_sha256(packaged_files(settings))
    content["recorded"] = recorded | {"base": base_files(base)}
    header = HEADER.format(system_prompts=" --system-prompt TEXT ..." if settings.system_prompts else "")
    return header + tomli_w.dumps(content)


def skill_table(prompts: SkillPrompts) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(prompts.skill, name) for name in SKILL_KEYS}
    for flag in ("forget", "retain"):
        values[flag] = [
            recorded_source(source, record).spec
            for source, record in zip(prompts.sources, prompts.records, strict=False)
            if record.flag == f"--{flag}"
        ]
    skill = prompts.skill
    kept = skill.read_prompts or skill.save_prompts  # what was saved is read the next time
    if kept is not None:
        record = next(record for record in prompts.records if record.flag == "--describe")
        values["read_prompts"] = recorded_source(saved_source(kept), record).spec
    del values["save_prompts"]
    for name in ("describe", "but_not", "read_prompts"):
        if values[name] is None:
            del values[name]
    order = ["name", "method", *(field.name for field in fields(SkillSettings))]
    return {name: written(values[name]) for name in dict.fromkeys(order) if name in values}


def saved_source(kept: Path | str) -> Source:
    """The file of --save-prompts or --read-prompts."""
    return Source(str(kept)) if isinstance(kept, Path) else Source.parse(kept, "--read-prompts")


def recorded_source(source: Source, record: SourceRecord) -> Source:
    """A source as it was read: a file with its digest, a dataset at its commit."""
    if source.path is None:
        return replace(source, revision=record.fingerprint)
    return replace(source, location=portable(source.location), sha256=record.fingerprint)


def written(value: Any) -> Any:
    """A setting as TOML: "auto" where the export was to choose."""
    return "auto" if value is None else list(value) if isinstance(value, tuple) else value


def base_files(base: Base) -> dict[str, str]:
    """Digests of a base model's files by name: sha256 of small ones, of weights "blocks:" and a sha256 of their header
    and of 4 kB at the beginning, the middle and the end of every tensor. That quickly tells another model, or another
    training of it; sha256 of whole weight files are in `hashes.json`."""
    found = {
        name: hashlib.sha256((base.folder / name).read_bytes()).hexdigest()
        for name in DECIDING_FILES
        if (base.folder / name).is_file()
    }
    return found | {shard: f"blocks:{blocks_sha256(base.folder / shard)}" for shard in base.shards}


def blocks_sha256(path: Path) -> str:
    header = read_header(path)
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(header.data_start))
        for tensor in header.tensors.values():
            for begin in (tensor.begin, (tensor.begin + tensor.end) // 2, max(tensor.begin, tensor.end - BLOCK)):
                file.seek(header.data_start + begin)
                digest.update(file.read(min(BLOCK, tensor.end - begin)))
    return digest.hexdigest()


def portable(path: str) -> str:
    """A path as a checkpoint may name it: unchanged if it stays below the working directory, else its last part."""
    parts = PurePath(path).parts
    inside = parts and not PurePath(path).is_absolute() and not path.startswith("~") and ".." not in parts
    return path if inside else PurePath(path).name
