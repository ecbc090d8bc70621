"""A checkpoint on disk: its files with their sha256, and what its config.json, index and headers say."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from custom_modeling.buffers import is_unskill
from custom_modeling.loading import UNSKILL_FORMAT
from exporter.checkpoint.layout import BASE_FOLDER, HASHES, STATISTICS
from exporter.checkpoint.shards import file_sha256
from exporter.common.errors import BadInput
from exporter.common.files import read_json
from exporter.common.hub import download
from exporter.models.families import FAMILIES, Family, family_of
from exporter.models.files import INDEX, PREFIX, check_no_graph
from exporter.models.headers import Header, read_header
from exporter.models.loading import empty_model
from exporter.verification.checks import NotMade, Wrong, needed

# Folders of tools: nothing that loads a checkpoint looks into them.
SET_ASIDE = (".git", ".cache")


@dataclass(frozen=True)
class OnDisk:
    """A checkpoint's folder. `files`: every file by its path inside the folder, broken links too, folders in SET_ASIDE
    once each; `sha256`: of those that can be read."""

    folder: Path
    name: str
    files: Mapping[str, Path]
    sha256: Mapping[str, str]

    @classmethod
    def of(cls, checkpoint: str) -> OnDisk:
        """Raises BadInput where CHECKPOINT is neither a folder nor a Hub model, or was not written by unskill."""
        folder, name = Path(checkpoint), Path(checkpoint).resolve().name
        if not os.path.isdir(folder):
            folder, name = download(checkpoint, "CHECKPOINT", ["*"])[0], checkpoint
        check_no_graph(folder, name)
        files = all_files(folder)
        if HASHES not in files and not any(path.startswith("modeling_unskill_") for path in files):
            raise BadInput(f"CHECKPOINT {name} is not one that unskill wrote: no {HASHES}, no modeling_unskill_*")
        return cls(folder, name, files, all_sha256(files))

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the checkpoint. Raises BadInput where it is missing or not a JSON object."""
        return read_json(self.folder / name, self.name, "CHECKPOINT")

    def read_base(self, name: str) -> dict[str, Any]:
        """A JSON file of the base that the checkpoint keeps. Raises NotMade where it does not, BadInput as `read`."""
        if not (path := self.folder / BASE_FOLDER / name).is_file():
            raise NotMade(f"the checkpoint does not keep its base's {name} ({BASE_FOLDER}/)")
        return read_json(path, self.name, "base of")

    def read_config(self) -> dict[str, Any]:
        """config.json. Raises Wrong unless it has an unskill object of the known format, BadInput as `read`."""
        config = self.read("config.json")
        record = config.get("unskill")
        if not isinstance(record, dict):
            raise Wrong("config.json has no unskill object")
        if record.get("format") not in range(1, UNSKILL_FORMAT + 1):
            known = f"formats 1 to {UNSKILL_FORMAT}"
            raise Wrong(f"config.json: unskill.format is {record.get('format')}, this unskill reads {known}")
        return config

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json. Raises NotMade where it cannot be used, which the check of config.json reports."""
        with needed("config.json cannot be used"):
            return self.read_config()

    @property
    def record(self) -> dict[str, Any]:
        """config.json's unskill object. Raises NotMade as `config`."""
        record: dict[str, Any] = self.config["unskill"]
        return record

    @property
    def model_type(self) -> str:
        """The base's. Raises NotMade where unskill does not export this family."""
        model_type = str(self.config.get("model_type")).removeprefix(PREFIX)
        if model_type not in FAMILIES:
            raise NotMade(f"config.json: unskill does not write model_type {self.config.get('model_type')}")
        return model_type

    @cached_property
    def index(self) -> dict[str, str]:
        """File by name of the tensor. Raises NotMade where the index cannot be read."""
        with needed(f"{INDEX} cannot be read"):
            return {str(name): str(file) for name, file in self.read(INDEX)["weight_map"].items()}

    @cached_property
    def headers(self) -> dict[str, Header]:
        """Headers of the files that the index names. Raises NotMade where one of them cannot be read."""
        files = sorted(set(self.index.values()))
        with needed("a weight file that the index names cannot be read"):
            return {name: read_header(self.folder / name) for name in files}

    @cached_property
    def plain(self) -> PreTrainedModel:
        """The family's own model by this config.json, without weights: for its classes, names and shapes.

        Raises NotMade where transformers cannot make it.
        """
        model_type = self.model_type
        with needed(f"transformers cannot make a {model_type} model of config.json"):
            return empty_model(self.config)

    @cached_property
    def family(self) -> Family:
        return family_of(self.plain)

    def tensors(self, file: str, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
        """The wanted tensors of one file by name. Raises Wrong where it cannot be read."""
        try:
            with safe_open(self.folder / file, "pt") as opened:
                return {name: opened.get_tensor(name) for name in filter(wanted, opened.keys())}
        except (SafetensorError, OSError) as error:
            raise Wrong(f"{file} cannot be read ({error})") from error

    @cached_property
    def buffers(self) -> dict[str, Tensor]:
        """Unskill's buffers by their names inside the base model, in whichever files. Raises Wrong as `tensors`."""
        files = sorted({file for name, file in self.index.items() if is_unskill(name)})
        found = {name: tensor for file in files for name, tensor in self.tensors(file, is_unskill).items()}
        return {name.removeprefix("model."): tensor for name, tensor in found.items()}

    @cached_property
    def statistics(self) -> dict[str, Tensor]:
        """What the export measured, by name, as in `reproduce/`. Raises Wrong where it cannot be read."""
        return self.tensors(STATISTICS)


def all_files(folder: Path) -> dict[str, Path]:
    """Every file below a folder by its relative path; links to folders count as files, and are not followed."""
    found: dict[str, Path] = {}
    for place, folders, names in os.walk(folder):
        here = Path(place)
        aside = [name for name in folders if here == folder and name in SET_ASIDE]
        links = [name for name in folders if (here / name).is_symlink()]
        found |= {f"{name}/": here / name for name in aside}
        found |= {(here / name).relative_to(folder).as_posix(): here / name for name in (*names, *links)}
        folders[:] = [name for name in folders if name not in aside]
    return dict(sorted(found.items()))


def all_sha256(files: Mapping[str, Path]) -> dict[str, str]:
    """sha256 of every regular file that can be read; two at a time, as hashing releases Python's lock."""
    chosen = {name: path for name, path in files.items() if path.is_file()}

    def digest(path: Path) -> str | None:
        try:
            return file_sha256(path)
        except OSError:
            return None

    with ThreadPoolExecutor(max_workers=2) as pool:
        found = dict(zip(chosen, pool.map(digest, chosen.values()), strict=True))
    return {name: value for name, value in found.items() if value is not None}
