"""What the recipe of an export says of its inputs, and the run that repeats it: are they here, are they the same?

Such a recipe has a table [recorded] with the digests of the base model's files, of the user's own system prompts
(whose texts stay out of a checkpoint) and of the statistics file. Data files have theirs in their sources, as sha256=.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from exporter.common.errors import BadInput
from exporter.models.files import Base
from exporter.prompts.sources import Source, fingerprint

# Of a base's files those that decide what its neurons and tokens are.
DECIDING_FILES: tuple[str, ...] = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
DECIDING_FILES += ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json")
BLOCK = 4096  # bytes


@dataclass(frozen=True)
class Recorded:
    """Digests of what the export read; `versions`: what it was run with, from versions.json beside the recipe.

    `model_given`, `statistics_given`: named on the command line, so that nobody asked for what the export had.
    """

    base: Mapping[str, str] = field(default_factory=dict)
    system_prompts: tuple[str, ...] = ()
    statistics: str | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    model_given: bool = False
    statistics_given: bool = False

    def ordered(self, given: Sequence[str]) -> tuple[str, ...]:
        """The system prompts that are given, in the order of the export. Raises BadInput where they are others."""
        texts = {text_sha256(text): text for text in given}
        missing = sum(digest not in texts for digest in self.system_prompts)
        if missing or set(texts) - set(self.system_prompts):
            raise BadInput(
                f"--system-prompt: the recipe's export had {len(self.system_prompts)} of its own, of which "
                f"{missing or 'none'} {'is' if missing == 1 else 'are'} missing here, and "
                f"{len(set(texts) - set(self.system_prompts))} are not its own; give the same texts (it has their "
                "sha256 only)"
            )
        return tuple(texts[digest] for digest in self.system_prompts)

    def check(self, base: Base, statistics: Path | None, remark: Callable[[str], None]) -> None:
        """Raise BadInput where the base model or the statistics are not those of the export, and were not named on the
        command line; there another model is worth a remark."""
        if self.statistics is not None and statistics is not None and not self.statistics_given:
            found = fingerprint(Source(str(statistics)), "--statistics")
            if found != self.statistics:
                raise BadInput(
                    f"--statistics: {statistics.name} is not the file of the recipe (sha256); give that one, or name "
                    "another on the command line"
                )
        if not self.base:
            return
        there = base_files(base)
        other = [name for name in sorted({*there, *self.base}) if there.get(name) != self.base.get(name)]
        if not other:
            return
        differs = f"MODEL {base.name}: {', '.join(other)} {'is' if len(other) == 1 else 'are'} not as the recipe's"
        if not self.model_given:
            raise BadInput(f"{differs} export found it (sha256); give that model, or name another on the command line")
        remark(f"{differs}, so the interventions will be others.")

    def compare(self, present: Mapping[str, Any], remark: Callable[[str], None]) -> None:
        """Remark on versions, processor and threads that are not those of the export."""
        names = sorted({*present, *self.versions} - {"batches_halved"})
        other = [name for name in names if self.versions and present.get(name) != self.versions.get(name)]
        if other:
            told = ", ".join(f"{name} {self.versions.get(name)} (here {present.get(name)})" for name in other)
            remark(f"The recipe's export was made with {told}: the interventions may differ in their last bits.")
        if self.versions.get("batches_halved"):
            remark(
                "Memory ran out in the recipe's export, and batches were halved: the interventions may differ in "
                "their last bits."
            )


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def base_files(base: Base) -> dict[str, str]:
    """Digests of a base model's files by name: sha256 of small ones, of weights "blocks:" and a sha256 of their header
    and of 4 kB at the beginning, the middle and the end of every tensor. That tells another model, or another training
    of it, in no time; sha256 of whole weight files are in `hashes.json`."""
    found = {
        name: hashlib.sha256((base.folder / name).read_bytes()).hexdigest()
        for name in DECIDING_FILES
        if (base.folder / name).is_file()
    }
    return found | {shard: f"blocks:{blocks_sha256(base.folder / shard)}" for shard in base.shards}


def blocks_sha256(path: Path) -> str:
    from exporter.checkpoint.shards import read_header  # torch

    header = read_header(path)
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(header.data_start))
        for tensor in header.tensors.values():
            for begin in (tensor.begin, (tensor.begin + tensor.end) // 2, max(tensor.begin, tensor.end - BLOCK)):
                file.seek(header.data_start + begin)
                digest.update(file.read(min(BLOCK, tensor.end - begin)))
    return digest.hexdigest()


def portable(path: str) -> str:
    """A path as a checkpoint may name it: as it is where it stays below the working directory, else its last part."""
    parts = PurePath(path).parts
    inside = parts and not PurePath(path).is_absolute() and not path.startswith("~") and ".." not in parts
    return path if inside else PurePath(path).name


def locate(values: Mapping[str, Any], given: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """A recipe's values (see `read_recipe`) with its files and its model's folder where they lie: in one of `folders`
    or, as ever, in the working directory. Of files of one name the one with the recorded digest counts, of
    folders that with the recorded config.json.

    given: flags, which need not be looked for in the recipe.

    Raises BadInput where a folder is none, or the files of a recipe that an export has written are in none of them.
    """
    for folder in folders:
        if not os.path.isdir(folder):
            raise BadInput(f"--data: {folder} is no folder")
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
