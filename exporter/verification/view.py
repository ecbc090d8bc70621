"""A checkpoint as it lies on the disk: its files with their sha256, and what its config.json says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from custom_modeling.loading import UNSKILL_FORMAT
from exporter.checkpoint.layout import FOLDER, HASHES
from exporter.checkpoint.shards import Header, file_sha256, read_header
from exporter.common.errors import BadInput, UnskillError
from exporter.common.files import read_json
from exporter.common.hub import download
from exporter.models.families import GATED_FAMILIES, Family, family_of
from exporter.models.files import INDEX
from exporter.models.loading import UNSOUND, empty_model
from exporter.verification.checks import NOT_AS_WRITTEN, NotMade

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HASHES_FILE = f"{FOLDER}/{HASHES}"
BASE_FOLDER = f"{FOLDER}/base"
# Of tools, not of a checkpoint: nothing that loads one looks into them.
SET_ASIDE = (".git", ".cache")


@dataclass(frozen=True)
class View:
    """A checkpoint's folder. `files`: every file by its path inside the folder, broken links too, folders in SET_ASIDE
    once each; `sha256`: of those that can be read."""

    folder: Path
    name: str
    files: Mapping[str, Path]
    sha256: Mapping[str, str]

    @classmethod
    def of(cls, checkpoint: str) -> View:
        """Raises BadInput where CHECKPOINT is neither a folder nor a Hub model, or nothing that unskill wrote."""
        folder, name = Path(checkpoint), Path(checkpoint).resolve().name
        if not os.path.isdir(folder):
            folder, name = download(checkpoint, "CHECKPOINT", ["*"])[0], checkpoint
        files = all_files(folder)
        if HASHES_FILE not in files and not any(path.startswith("modeling_unskill_") for path in files):
            raise BadInput(
                f"CHECKPOINT {name} is not one that unskill wrote: it has no {HASHES_FILE} and no modeling file of it"
            )
        return cls(folder, name, files, all_sha256(files))

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json. Raises NotMade where it cannot be used, which the check of config.json says."""
        try:
            config = read_json(self.folder / "config.json", self.name, "CHECKPOINT")
        except (UnskillError, *NOT_AS_WRITTEN) as error:
            raise NotMade("config.json cannot be read") from error
        record = config.get("unskill")
        if not isinstance(record, dict) or record.get("format") != UNSKILL_FORMAT:
            raise NotMade("config.json has no unskill object of a known format")
        return config

    @property
    def record(self) -> dict[str, Any]:
        """config.json's unskill object. Raises NotMade as `config`."""
        record: dict[str, Any] = self.config["unskill"]
        return record

    @property
    def model_type(self) -> str:
        """The base's. Raises NotMade where it is none that unskill exports."""
        model_type = str(self.config.get("model_type")).removeprefix("unskill_")
        if model_type not in GATED_FAMILIES:
            raise NotMade(f"config.json: model_type {self.config.get('model_type')} is none that unskill writes")
        return model_type

    @cached_property
    def index(self) -> dict[str, str]:
        """File by name of the tensor. Raises NotMade where there is no index that can be read."""
        try:
            found = read_json(self.folder / INDEX, self.name, "CHECKPOINT")["weight_map"]
            return {str(name): str(file) for name, file in found.items()}
        except (UnskillError, *NOT_AS_WRITTEN) as error:
            raise NotMade(f"{INDEX} cannot be read") from error

    @cached_property
    def headers(self) -> dict[str, Header]:
        """Headers of the files that the index names. Raises NotMade where one of them cannot be read."""
        try:
            return {name: read_header(self.folder / name) for name in sorted(set(self.index.values()))}
        except (UnskillError, *NOT_AS_WRITTEN) as error:
            raise NotMade("a weight file that the index names cannot be read") from error

    @cached_property
    def plain(self) -> PreTrainedModel:
        """The family's own model by this config.json, without weights: for its classes, names and shapes.

        Raises NotMade where transformers makes none of it.
        """
        model_type = self.model_type
        try:
            return empty_model(self.config)
        except UNSOUND as error:
            raise NotMade(f"transformers makes no {model_type} model of config.json") from error

    @cached_property
    def family(self) -> Family:
        return family_of(self.plain)

    def base_file(self, name: str) -> Path:
        """A file of the base that the checkpoint keeps. Raises NotMade where it does not."""
        path = self.folder / BASE_FOLDER / name
        if not path.is_file():
            raise NotMade(f"the checkpoint does not keep its base's {name} ({BASE_FOLDER}/)")
        return path


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
    """sha256 of every regular file that can be read; two at a time, for hashing leaves Python to others."""
    chosen = {name: path for name, path in files.items() if path.is_file()}

    def digest(path: Path) -> str | None:
        try:
            return file_sha256(path)
        except OSError:
            return None

    with ThreadPoolExecutor(max_workers=2) as pool:
        found = dict(zip(chosen, pool.map(digest, chosen.values()), strict=True))
    return {name: value for name, value in found.items() if value is not None}
