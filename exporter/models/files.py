"""The files of a model, in a folder or on the Hub."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from exporter.common.errors import BadInput
from exporter.common.files import link_out, read_json
from exporter.common.hub import download
from exporter.models.families import check_config
from exporter.models.headers import TensorInfo, all_tensors
from exporter.models.named_ids import GENERATION
from exporter.models.weights import SAVE, check_rows, check_weights

PREFIX = "unskill_"
"""Prefix of a checkpoint's model_type, before that of its base."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADAPTER = "adapter_config.json"
# Weights in forms that are not read.
OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.npz", "*.msgpack", "*.h5")
# Files of a base that are copied to the checkpoint, which its licence covers too.
LICENCES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
# Files of a model beside its weights. By name, because a local folder may contain anything else.
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
TEMPLATES = "additional_chat_templates"
"""The one folder inside a model that `from_pretrained` reads."""
# Files to download beside the weights; of these only those that the index names, because many repos also have them in
# other forms: consolidated.safetensors, original/, pickles.
HUB_FILES = (*SMALL_FILES, "*.json")


@dataclass(frozen=True)
class Base:
    """A base model or checkpoint on disk. `name`: Hub id or name of the folder, never a path; `revision`: commit of a
    Hub model."""

    folder: Path
    name: str
    revision: str | None
    config: dict[str, Any]
    shards: tuple[str, ...]

    @property
    def argument(self) -> str:
        """What it is called on the command line."""
        return "CHECKPOINT" if "unskill" in self.config else "MODEL"

    @property
    def what(self) -> str:
        """Its name for errors."""
        return f"{self.argument} {self.name}"

    @property
    def rows(self) -> int:
        """Rows of its embedding."""
        return size_in(self.config, "vocab_size")

    @cached_property
    def generation(self) -> dict[str, Any]:
        """generation_config.json, empty where there is none. Raises BadInput where it is not a JSON object."""
        path = self.folder / GENERATION
        return read_json(path, self.name, self.argument) if path.is_file() else {}

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Tensors of the weight files by name, as in their headers. Raises BadInput where a file is damaged, or two
        have the same tensor."""
        return {name: info for name, (_, info) in all_tensors(self.folder / shard for shard in self.shards).items()}

    @property
    def identity(self) -> str:
        """Digest by which a later run recognises the same model.

        Of config.json, which has the sha256 of every intervention, and of the sizes of the weight files; reading the
        weights themselves, often many gigabytes, would take too long.
        """
        sizes = {shard: (self.folder / shard).stat().st_size for shard in self.shards}
        return hashlib.sha256(json.dumps([self.config, sizes], sort_keys=True).encode()).hexdigest()


def find_base(model: str, revision: str | None = None, what: str = "MODEL") -> Base:
    """Locate a base, a folder or a Hub id. Raises BadInput if something that it is read for is missing, or its weights
    are in no form that is read.

    revision: branch, tag or commit of a Hub model; what: the argument's name, for errors."""
    base = find_files(model, what, check_config, revision=revision)
    check_weights(base.tensors, f"{what} {base.name}")
    return base


def check_writable(base: Base) -> None:
    """Raises BadInput for a base whose files cannot be written into a checkpoint: weights to which no row can be
    added, and links out of its folder, as what they lead to would be copied."""
    check_rows(base.tensors, base.what)
    paths = [base.folder / shard for shard in base.shards]
    patterns = (*SMALL_FILES, f"{TEMPLATES}/*")
    paths += sorted(path for pattern in patterns for path in base.folder.glob(pattern) if path.is_file())
    if (link := link_out(base.folder, paths)) is not None:
        raise BadInput(
            f"{base.what}: {link.name} is a link to a file outside of the folder, which the checkpoint would have a "
            "copy of; copy the file into the folder if it belongs to the model"
        )


def find_files(
    model: str,
    what: str,
    check: Callable[[dict[str, Any], str], None],
    code: bool = False,
    revision: str | None = None,
) -> Base:
    """Locate the files of a model, a folder or a Hub id.

    what: the argument's name, for errors; check: called with config.json and the model's name, raises BadInput for an
    unsuitable model; code: with the modeling code of a checkpoint; revision: of a Hub model.

    Raises BadInput if config.json, tokenizer.json or a safetensors file is missing.
    """
    folder, commit = Path(model), None
    if not os.path.isdir(folder):  # unlike Path.is_dir, accepts a name too long for a file
        folder, commit = download(model, what, [*HUB_FILES, *(["*.py"] if code else [])], revision)
    elif revision is not None:
        raise BadInput(f"--revision: is for models on the Hub, and {what} {folder.name} is a folder; leave it out")
    name = model if commit else folder.resolve().name
    check_no_adapter(folder, name, what)
    config = read_json(folder / "config.json", name, what)
    check(config, name)
    if (folder / TOKENIZER_CONFIG).is_file():
        read_json(folder / TOKENIZER_CONFIG, name, what)  # transformers does not say which file is damaged
    if not (folder / "tokenizer.json").is_file():
        raise BadInput(f"{what} {name} has no tokenizer.json: a fast tokenizer is needed")
    if commit is not None:
        wanted = indexed_shards(folder, name, what) if (folder / INDEX).is_file() else (WEIGHTS,)
        if not all((folder / shard).is_file() for shard in wanted):
            download(model, what, wanted, commit)
    return Base(folder, name, commit, config, find_shards(folder, name, what))


def check_no_adapter(folder: Path, name: str, what: str) -> None:
    """Raises BadInput for an adapter: transformers loads it, and the model that it names, only where peft is there."""
    if not (folder / ADAPTER).is_file():
        return
    alone = not any((folder / weights).is_file() for weights in (WEIGHTS, INDEX))
    found = "is an adapter without its model" if alone else "has an adapter beside its weights"
    without = "" if alone else f", or take {ADAPTER} out to go on without it"
    raise BadInput(
        f"{what} {name} {found} ({ADAPTER}): merge it (PeftModel.merge_and_unload()), save the result "
        f"(save_pretrained) and give that{without}"
    )


def find_shards(folder: Path, name: str, what: str) -> tuple[str, ...]:
    """File names of the weights; like transformers, the single file if there are both forms."""
    if (folder / WEIGHTS).is_file():
        return (WEIGHTS,)
    if (folder / INDEX).is_file():
        shards = indexed_shards(folder, name, what)
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise BadInput(f"{what} {name}: {INDEX} names {missing[0]}, which is missing; download or copy it again")
        return shards
    others = sorted(path.name for pattern in OTHER_WEIGHTS for path in folder.glob(pattern))
    there = f"; {others[0]} is not read: {SAVE}" if others else ""
    raise BadInput(f"{what} {name} has no {WEIGHTS}{there}")


def indexed_shards(folder: Path, name: str, what: str) -> tuple[str, ...]:
    """Sorted file names in the index. Raises BadInput if it is malformed."""
    index = read_json(folder / INDEX, name, what)
    weight_map = index.get("weight_map")
    found = weight_map.values() if isinstance(weight_map, dict) else ()
    if not found or not all(
        isinstance(shard, str) and Path(shard).name == shard and shard.isprintable() for shard in found
    ):
        raise BadInput(f"{what} {name}: {INDEX} has no weight_map that names the file of each weight")
    if not isinstance(index.get("metadata"), dict):
        raise BadInput(f'{what} {name}: {INDEX} has no "metadata", which transformers reads; add "metadata": {{}}')
    return tuple(sorted(set(found)))


def size_in(config: Mapping[str, Any], name: str) -> int:
    """A size in the config.json of a base or checkpoint, such as vocab_size; if missing, its class's default."""
    if name not in config:
        # Here, because it is rarely needed and torch-free commands load this module.
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        return int(getattr(CONFIG_MAPPING[config["model_type"].removeprefix(PREFIX)](), name))
    return int(config[name])


def find_checkpoint(checkpoint: str, patterns: Sequence[str]) -> tuple[Path, str, str | None, dict[str, Any]]:
    """A checkpoint's folder, its name, its commit and its config.json; of one on the Hub, which alone has a commit,
    files of these names are downloaded.

    Raises BadInput where unskill did not write it.
    """
    folder, name, commit = Path(checkpoint), Path(checkpoint).resolve().name, None
    if not os.path.isdir(folder):
        name = checkpoint
        folder, commit = download(checkpoint, "CHECKPOINT", patterns)
    config = read_json(folder / "config.json", name, "CHECKPOINT")
    check_checkpoint(config, name)
    return folder, name, commit, config


def check_no_graph(folder: Path, name: str) -> None:
    """Raises BadInput for an ONNX folder of unskill, which has no torch weights."""
    if os.path.isdir(folder) and any(folder.glob("onnx/*.onnx")) and not (folder / INDEX).is_file():
        raise BadInput(
            f"CHECKPOINT {name} is an ONNX folder: give the checkpoint that it was made from. unskill inspect reads "
            "this one, unskill verify CHECKPOINT --onnx checks it, and examples/onnx has a chat with it"
        )


def check_checkpoint(config: dict[str, Any], name: str) -> None:
    """Raises BadInput if a config.json is not from a checkpoint that unskill wrote."""
    if not isinstance(config.get("unskill"), dict):
        raise BadInput(f"CHECKPOINT {name} is not one that unskill wrote: config.json has no unskill object")
