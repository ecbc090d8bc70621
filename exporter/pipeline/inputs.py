"""The inputs of an export that follows a recipe: where they are, and whether they are those of the recipe's export."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from exporter.checkpoint.recipe import base_files
from exporter.common.errors import BadInput
from exporter.common.text import Notify
from exporter.models.files import Base
from exporter.prompts.packaged import packaged_sha256
from exporter.prompts.packaged_skills import packaged_files
from exporter.prompts.sources import Source, fingerprint
from exporter.prompts.written import is_kept
from exporter.recipes.recorded import Recorded
from exporter.recipes.settings import ExportSettings


def locate(values: Mapping[str, Any], given: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """A recipe's values (see `read_recipe`) with the paths of its files and of its model's folder as found in one of
    `folders` or in the working directory: of several files the one with the recorded digest, of several folders the
    one with the recorded config.json.

    given: flags, which replace the recipe's values.

    Raises BadInput where one of `folders` is not a folder, or a file of a recipe that an export wrote is not found.
    """
    for folder in folders:
        if not os.path.isdir(folder):
            raise BadInput(f"--data: {folder} is not a folder")
    recorded: Recorded | None = values.get("recorded")
    strict = recorded is not None

    def found(key: str, value: Any) -> Any:
        if key == "skill":
            return [{name: found(name, each) for name, each in table.items()} for table in value]
        if key in ("forget", "retain") and key not in given:
            return tuple(locate_source(spec, f"--{key}", folders, strict) for spec in value)
        if key == "read_prompts" and key not in given and value is not None:
            return locate_source(value, "--read-prompts", folders, strict)
        if key == "statistics" and key not in given:
            return find_file(str(value), recorded.statistics if recorded else None, "--statistics", folders, strict)
        if key == "model" and key not in given and values.get("revision") is None:
            return find_model(value, recorded, folders)
        return value

    return {key: found(key, value) for key, value in values.items()}


def find_model(model: str, recorded: Recorded | None, folders: Sequence[Path]) -> str:
    places = [place for place in candidates(model, folders) if os.path.isfile(place / "config.json")]
    if recorded is not None and not places:
        raise BadInput(f"MODEL: the recipe's folder {model} {nowhere(folders)}, or name MODEL on the command line")
    if recorded is not None:
        digest = recorded.base.get("config.json")
        places.sort(key=lambda place: hashlib.sha256((place / "config.json").read_bytes()).hexdigest() != digest)
    return str(places[0]) if places else model


def locate_source(spec: str, flag: str, folders: Sequence[Path], strict: bool) -> str:
    source = Source.parse(spec, flag)
    if source.path is None or (not folders and not strict):
        return spec
    place = find_file(source.location, source.sha256, flag, folders, strict)
    return replace(source, location=str(place)).spec


def find_file(path: str, digest: str | None, flag: str, folders: Sequence[Path], strict: bool) -> Path:
    places = [place for place in candidates(path, folders) if os.path.isfile(place)]
    if not places and strict:
        raise BadInput(f"{flag}: {path}, which the recipe names, {nowhere(folders)}")
    fitting = (place for place in places if digest is None or fingerprint(Source(str(place)), flag) == digest)
    return next(fitting, places[0] if places else Path(path))


def nowhere(folders: Sequence[Path]) -> str:
    where = "in the working directory nor under --data" if folders else "in the working directory"
    return f"is not {where}; --data DIR names the folder that has it"


def candidates(path: str, folders: Sequence[Path]) -> list[Path]:
    """Where a file of a recipe may be: in each folder, by its path or its name alone, or at its path from here."""
    within = [folder / each for folder in folders for each in (path, PurePath(path).name)]
    return [*within, Path(os.path.expanduser(path))]


def check_packaged(recorded: Recorded, settings: ExportSettings) -> None:
    """Raise BadInput where the packaged files that the export read are others here; the message names the unskill that
    has them. What flags leave out or add is not compared."""
    present = packaged_sha256(packaged_files(settings))
    if recorded.packaged is None:
        if present:
            version = recorded.versions.get("unskill", "0.1.0")
            raise BadInput(
                f"--recipe: its export used packaged prompts, and {', '.join(present)} may have changed since; "
                f"unskill {version} has them as they were"
            )
        return
    both = present.keys() & recorded.packaged.keys()
    names = both if recorded.packaged_given else present.keys() | recorded.packaged.keys()
    other = sorted(name for name in names if present.get(name) != recorded.packaged.get(name))
    if other:
        version = recorded.versions.get("unskill", "of the version that wrote the recipe")
        raise BadInput(
            f"--recipe: packaged prompts are not as the recipe's export read them (sha256): {', '.join(other)}; "
            f"unskill {version} has them as they were"
        )


def check_described(settings: ExportSettings, recorded: Recorded | None) -> None:
    """Raise BadInput where prompts were written for an export that cannot be read again, or --save-prompts cannot be
    written."""
    taken: list[Path] = []
    for skill in settings.skills:
        if recorded is not None and skill.to_write and not recorded.described_given:
            raise BadInput(
                f"--recipe: the prompts of {skill.name} were written by a model and not kept, so this export cannot "
                "be made again; give --describe to have new ones written, and --save-prompts FILE to keep them"
            )
        if (path := skill.save_prompts) is None:
            continue
        place = path.resolve()
        if place.exists() and not settings.overwrite:
            raise BadInput(
                f"--save-prompts: {path} exists: name another file, read it by --read-prompts, or --overwrite"
            )
        if place.exists() and not is_kept(place):
            raise BadInput(
                f"--save-prompts: {path} is no such file of an earlier export: --overwrite will not replace it"
            )
        if settings.out.resolve() in place.parents:
            raise BadInput(f"--save-prompts: {path} lies in OUT, which holds no prompts; name a file outside of it")
        if not place.parent.is_dir():
            raise BadInput(f"--save-prompts: the folder {path.parent} does not exist; make it first")
        if not os.access(place.parent, os.W_OK | os.X_OK):
            raise BadInput(f"--save-prompts: the folder {path.parent} is not writable; name another")
        if place in taken:
            raise BadInput(f"--save-prompts: {path} is the file of two skills; name one for each")
        taken.append(place)


def check_recorded(recorded: Recorded, base: Base, statistics: Path | None, notify: Notify) -> None:
    """Raise BadInput where the base model or the statistics are not those of the export, unless they were named on the
    command line: then another model is only reported."""
    if recorded.statistics is not None and statistics is not None and not recorded.statistics_given:
        found = fingerprint(Source(str(statistics)), "--statistics")
        if found != recorded.statistics:
            raise BadInput(
                f"--statistics: {statistics.name} is not the file of the recipe (sha256); give that one, or name "
                "another on the command line"
            )
    if not recorded.base:
        return
    there = base_files(base)
    other = [name for name in sorted({*there, *recorded.base}) if there.get(name) != recorded.base.get(name)]
    if not other:
        return
    differs = f"MODEL {base.name}: {', '.join(other)} {'is' if len(other) == 1 else 'are'} not as the recipe's"
    if not recorded.model_given:
        raise BadInput(f"{differs} export found it (sha256); give that model, or name another on the command line")
    notify(f"{differs}, so the interventions will differ.")
