"""The inputs of an export that follows a recipe: where they lie, and whether they are those of the recipe's export."""

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
from exporter.prompts.sources import Source, fingerprint
from exporter.recipes.recorded import Recorded


def locate(values: Mapping[str, Any], given: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """A recipe's values (see `read_recipe`) with its files and its model's folder where they lie: in one of `folders`
    or, as ever, in the working directory. Of files of one name the one with the recorded digest counts, of
    folders that with the recorded config.json.

    given: flags, which need not be looked for in the recipe.

    Raises BadInput where a folder is none, or the files of a recipe that an export has written are in none of them.
    """
    for folder in folders:
        if not os.path.isdir(folder):
            raise BadInput(f"--data: {folder} is not a folder")
    strict = "recorded" in values

    def sources(table: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: tuple(locate_source(spec, f"--{key}", folders, strict) for spec in value)
            if key in ("forget", "retain") and key not in given
            else value
            for key, value in table.items()
        }

    found = sources(values)
    if "skill" in found:
        found["skill"] = [sources(table) for table in found["skill"]]
    if "statistics" in found and "statistics" not in given:
        digest = values["recorded"].statistics if strict else None
        found["statistics"] = find_file(str(values["statistics"]), digest, "--statistics", folders, strict)
    if "model" in found and "model" not in given and found.get("revision") is None:
        places = [place for place in candidates(found["model"], folders) if os.path.isfile(place / "config.json")]
        if strict and not places:
            raise BadInput(
                f"MODEL: the recipe's folder {found['model']} is not in the working directory"
                f"{' nor under --data' if folders else ''}; --data DIR names the folder that has it, or name MODEL on "
                "the command line"
            )
        if strict:
            digest = values["recorded"].base.get("config.json")
            places.sort(key=lambda place: hashlib.sha256((place / "config.json").read_bytes()).hexdigest() != digest)
        found["model"] = str(places[0]) if places else found["model"]
    return found


def locate_source(spec: str, flag: str, folders: Sequence[Path], strict: bool) -> str:
    source = Source.parse(spec, flag)
    if source.path is None or (not folders and not strict):
        return spec
    place = find_file(source.location, source.sha256, flag, folders, strict)
    return replace(source, location=str(place)).spec


def find_file(path: str, digest: str | None, flag: str, folders: Sequence[Path], strict: bool) -> Path:
    places = [place for place in candidates(path, folders) if os.path.isfile(place)]
    if not places:
        if strict:
            raise BadInput(
                f"{flag}: {path}, which the recipe names, is not in the working directory"
                f"{' nor under --data' if folders else ''}; --data DIR names the folder that has it"
            )
        return Path(path)
    fitting = [place for place in places if digest is None or fingerprint(Source(str(place)), flag) == digest]
    return [*fitting, *places][0]


def candidates(path: str, folders: Sequence[Path]) -> list[Path]:
    """Where a file of a recipe may lie: in each folder under its path or its name alone, or where the path leads."""
    name = PurePath(path).name
    within = [place for folder in folders for place in (folder / path, folder / name)]
    return [*within, Path(os.path.expanduser(path))]


def check_recorded(recorded: Recorded, base: Base, statistics: Path | None, notify: Notify) -> None:
    """Raise BadInput where the base model or the statistics are not those of the export, and were not named on the
    command line; there the user is told of another model."""
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
    notify(f"{differs}, so the interventions will be others.")
