"""A model's files, in a folder or on the Hub."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.common.errors import BadInput
from exporter.common.files import read_json
from exporter.common.hub import download
from exporter.models.families import check_config

PREFIX = "unskill_"
"""Of a checkpoint's model_type, before its base's."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Files of a base that go along as they are: its licence binds the checkpoint too.
LICENCES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
# What belongs to a model beside its weights. By name: beside a model on somebody's disk there may be anything else.
SMALL_FILES: tuple[str, ...] = (*LICENCES, "README*", ".gitattributes", "*config.json", "params.json", "*.index.json")
SMALL_FILES += ("*.jinja", "chat_template.json", "special_tokens_map.json", "added_tokens.json", "tokenizer*.json")
SMALL_FILES += (
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.tiktoken",
    "tokenizer.model*",
    "spiece.model",
)
# What is downloaded beside the weights. Of these only the files that the index names, as many repos have them in other
# forms too: consolidated.safetensors, original/, pickles.
HUB_FILES = (*SMALL_FILES, "*.json")


@dataclass(frozen=True)
class Base:
    """A base model or checkpoint on disk. `name`: Hub id or folder name, never a path; `revision`: commit of a Hub
    model."""

    folder: Path
    name: str
    revision: str | None
    config: dict[str, Any]
    shards: tuple[str, ...]

    @property
    def identity(self) -> str:
        """What stands for the files, by which a later run knows that it is the same model.

        Hex digest of config.json, which holds the sha256 of every intervention, and of the size of each weight file;
        not of the weights themselves, of which there may be many gigabytes.
        """
        sizes = {shard: (self.folder / shard).stat().st_size for shard in self.shards}
        return hashlib.sha256(json.dumps([self.config, sizes], sort_keys=True).encode()).hexdigest()


def find_base(model: str, revision: str | None = None) -> Base:
    """Locate MODEL, a folder or a Hub id. Raises BadInput where something an export needs is not there.

    revision: branch, tag or commit of a Hub model."""
    return find_files(model, "MODEL", check_config, revision=revision)


def find_files(
    model: str,
    what: str,
    check: Callable[[dict[str, Any], str], None],
    code: bool = False,
    revision: str | None = None,
) -> Base:
    """Locate the files of a model, a folder or a Hub id.

    what: the argument's name, for errors; check: raises BadInput where a config.json, with the model's name, is not
    that of a model that can be used; code: with the modeling code of a checkpoint; revision: of a Hub model.

    Raises BadInput where there is no config.json, tokenizer.json or safetensors file.
    """
    folder, commit = Path(model), None
    if not os.path.isdir(folder):  # unlike Path.is_dir also of a name too long for a file
        folder, commit = download(model, what, [*HUB_FILES, *(["*.py"] if code else [])], revision)
    elif revision is not None:
        raise BadInput(f"--revision: is for models of the Hub, and {what} {folder.name} is a folder; leave it out")
    name = model if commit else folder.resolve().name
    config = read_json(folder / "config.json", name, what)
    check(config, name)
    if not (folder / "tokenizer.json").is_file():
        raise BadInput(f"{what} {name} has no tokenizer.json: a fast tokenizer is needed")
    if commit is not None:
        wanted = indexed_shards(folder, name, what) if (folder / INDEX).is_file() else (WEIGHTS,)
        if not all((folder / shard).is_file() for shard in wanted):
            download(model, what, wanted, commit)
    return Base(folder, name, commit, config, find_shards(folder, name, what))


def find_shards(folder: Path, name: str, what: str) -> tuple[str, ...]:
    """File names of the weights; transformers prefers the single file where there are both forms, and so do we."""
    if (folder / WEIGHTS).is_file():
        return (WEIGHTS,)
    if (folder / INDEX).is_file():
        shards = indexed_shards(folder, name, what)
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise BadInput(f"{what} {name}: {INDEX} names {missing[0]}, which is not there")
        return shards
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise BadInput(f"{what} {name} has pickle weights ({pickles[0]}), which are not read: save it as safetensors")
    raise BadInput(f"{what} {name} has no {WEIGHTS}")


def indexed_shards(folder: Path, name: str, what: str) -> tuple[str, ...]:
    """File names that the index names, sorted. Raises BadInput where it is not one."""
    weight_map = read_json(folder / INDEX, name, what).get("weight_map")
    found = weight_map.values() if isinstance(weight_map, dict) else ()
    if not found or not all(isinstance(shard, str) and Path(shard).name == shard for shard in found):
        raise BadInput(f"{what} {name}: {INDEX} does not say by weight_map in which file each weight is")
    return tuple(sorted(set(found)))


def size_in(config: Mapping[str, Any], name: str) -> int:
    """A size in the config.json of a base or checkpoint, such as vocab_size; left out, it is its class's default."""
    if name not in config:
        # Seldom needed, and not by torch-free commands where it is not.
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        return int(getattr(CONFIG_MAPPING[config["model_type"].removeprefix(PREFIX)](), name))
    size: int = config[name]
    return size


def check_checkpoint(config: dict[str, Any], name: str) -> None:
    """Raises BadInput where a config.json is not that of a checkpoint that unskill wrote."""
    if not isinstance(config.get("unskill"), dict):
        raise BadInput(f"CHECKPOINT {name} is not one that unskill wrote: config.json has no unskill object")
