"""A recipe: a TOML file with the settings of `unskill export`, for one skill or several.

Keys are flags with underscores. Those of a skill (see `SkillSettings`) are in a [[skill]] table; at the top level they
apply to every skill, or describe the only one. Flags on the command line override them. A recipe that an export wrote
also has a table [recorded] (see `exporter.recipes.recorded`).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.common.errors import BadInput
from exporter.recipes.declared import Setting, declared
from exporter.recipes.recorded import Recorded
from exporter.recipes.settings import HYPERCUBE, ExportSettings, SkillSettings
from exporter.recipes.templates import read_template

SKILL_KEYS = declared(SkillSettings)
# Settings of a run rather than of a model are flags only.
COMMON_KEYS = {name: each for name, each in declared(ExportSettings).items() if each.in_recipe and name != "skills"}
# Which packaged files are read depends on these.
CHOOSE_PACKAGED = ("packaged", "everyday", "method", "formats", "prompt_template")
OF_ONE_SKILL = ("name", "forget", "packaged", "describe", "but_not", "save_prompts", "read_prompts")
"""Flags that say what one skill is."""
RECORDED, VERSIONS = "recorded", "versions.json"


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe's values, converted to the settings' types; [[skill]] tables under "skill", a table [recorded] as
    `Recorded`.

    Raises BadInput if the file cannot be read, is not TOML, or has an unknown key or an invalid value.
    """
    content = read_toml(path, "--recipe")
    recorded = content.pop(RECORDED, None)
    tables = content.pop("skill", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise BadInput(f"--recipe {path.name}: write each skill as its own [[skill]] table")
    values = {key: _value(value, key, COMMON_KEYS | SKILL_KEYS, path.name) for key, value in content.items()}
    for number, table in enumerate(tables, start=1):
        where = f"{path.name}, skill {table.get('name', number)}"
        skill = {key: _value(value, key, SKILL_KEYS, where) for key, value in table.items()}
        values.setdefault("skill", []).append(skill)
    if recorded is None:
        return values
    for skill in values.get("skill", []):
        skill.setdefault("region", HYPERCUBE)  # exports of version 0.1 knew no other
    return values | {RECORDED: _recorded(recorded, path)}


def _recorded(table: Any, path: Path) -> Recorded:
    """What an export recorded, and its versions. Raises BadInput for anything that no export writes."""
    known = {"base", "packaged", "statistics", "system_prompts"}
    if not isinstance(table, dict) or set(table) - known:
        raise BadInput(f"--recipe {path.name}: [recorded] may hold {', '.join(sorted(known))}; leave out the rest")
    base, prompts, statistics = table.get("base", {}), table.get("system_prompts", []), table.get("statistics")
    packaged = table.get("packaged")
    fits = isinstance(base, dict) and isinstance(prompts, list) and isinstance(statistics, str | None)
    fits = fits and isinstance(packaged, dict | None)
    digests = [*base.values(), *prompts, *(packaged or {}).values()] if fits else []
    if not fits or not all(isinstance(digest, str) for digest in digests):
        raise BadInput(f"--recipe {path.name}: [recorded] may hold only sha256 digests as an export writes them")
    versions = path.with_name(VERSIONS)
    try:
        found = json.loads(versions.read_text(encoding="utf-8")) if versions.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"--recipe {path.name}: {VERSIONS} beside it cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise BadInput(f"--recipe {path.name}: {VERSIONS} beside it is no JSON object")
    return Recorded(base, tuple(prompts), statistics, packaged, found)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The content of a TOML file; what: its name on the command line.

    Raises BadInput if it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{what}: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
        raise BadInput(f"{what} {path.name}: is not TOML ({error})") from error
    except RecursionError as error:
        raise BadInput(f"{what} {path.name}: is nested too deeply") from error


def merged_settings(recipe: Mapping[str, Any], flags: Mapping[str, Any]) -> ExportSettings:
    """Settings from a recipe (see `read_recipe`) and from flags, which override it.

    A skill's flag applies to every skill, and the recipe's revision does not apply to a model given as a flag. Raises
    BadInput for invalid values, for several skills without names, for flags that say what one skill is, as --forget,
    with a recipe of several, and for other system prompts than those recorded.
    """
    everything = {**recipe, **flags}
    if "model" in flags and "revision" not in flags:
        everything.pop("revision", None)
    common = {key: value for key, value in everything.items() if key in declared(ExportSettings)}
    for key in ("model", "out"):
        if common.get(key) is None:
            example = "unskill export OUT --recipe FILE" if common.get("model") else "unskill export MODEL OUT"
            raise BadInput(f"{key.upper()}: give it on the command line or in a recipe: {example} ...")
    tables = recipe.get("skill", [{}])
    shared, given = ({key: each[key] for key in each if key in SKILL_KEYS} for each in (recipe, flags))
    for key in OF_ONE_SKILL:
        if len(tables) > 1 and key in given:
            raise BadInput(f"{SKILL_KEYS[key].flag}: the recipe has {len(tables)} skills; name their prompts there")
    skills = []
    for number, table in enumerate(tables, start=1):
        if len(tables) > 1 and "name" not in table:
            raise BadInput(f"--recipe: skill {number} has no name")
        values = {**shared, **table, **given}
        if "describe" in given and "read_prompts" not in given:
            values.pop("read_prompts", None)  # they were written for the recipe's description
        try:
            skills.append(SkillSettings(**values))
        except BadInput as error:
            if len(tables) == 1:
                raise
            raise BadInput(f"{error} (skill {table['name']})") from error
    if "prompt_template" in common:
        common["prompt_template"] = read_template(common["prompt_template"], "--prompt-template")
    recorded = recorded_in(recipe, flags)
    if recorded is not None and recorded.system_prompts:
        common["system_prompts"] = recorded.ordered(common.get("system_prompts", ()))
    return ExportSettings(skills=tuple(skills), **common)


def recorded_in(recipe: Mapping[str, Any], flags: Mapping[str, Any]) -> Recorded | None:
    """What an export recorded in the recipe, if anything, and which of it flags replace."""
    recorded: Recorded | None = recipe.get(RECORDED)
    if recorded is None:
        return None
    return replace(
        recorded,
        model_given="model" in flags,
        statistics_given="statistics" in flags,
        described_given="describe" in flags,
        packaged_given=not flags.keys().isdisjoint(CHOOSE_PACKAGED),
    )


def _value(value: Any, key: str, known: Mapping[str, Setting], where: str) -> Any:
    if key not in known:
        raise BadInput(f"--recipe {where}: no key '{key}'; there are {', '.join(sorted(known))}, and [[skill]]")
    try:
        return known[key].from_toml(value)
    except ValueError as error:
        raise BadInput(f"--recipe {where}: {key} = {value!r} is not {known[key].wanted}") from error
