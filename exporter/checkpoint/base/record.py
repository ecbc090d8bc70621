"""`reproduce/base/files.json`: every file of the base, and how it comes back out of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from operator import index
from pathlib import Path, PurePosixPath
from typing import Any

from exporter.common.errors import BadInput
from exporter.common.files import read_json

FORMAT = 1
FOLDER = "reproduce/base"
NAME = "files.json"
KEPT, CHECKPOINT, SHARD = "kept", "checkpoint", "shard"
"""How a file comes back: from FOLDER; as a file of the checkpoint that has the same bytes; as a weight file less R."""


@dataclass(frozen=True)
class Patched:
    """What gives a weight file again out of the one that R was written into; paths inside the checkpoint.

    header: the original header's bytes; rows: tensor and number of every row that R replaced, in the order of their
    bytes in the file `rows_path`, which is None where R was appended.
    """

    header: str
    rows_path: str | None
    rows: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Blanked:
    """`count` local paths were taken out of a file; size and sha256 are of the file as the base had it."""

    count: int
    size: int
    sha256: str


@dataclass(frozen=True)
class BaseFile:
    """One file of the base.

    Attributes:
        size: Bytes that come back.
        sha256: Of them; None for weights of an export with --no-fingerprints.
        origin: KEPT, CHECKPOINT or SHARD.
        path: Of the file that it comes from, inside the checkpoint.
    """

    name: str
    size: int
    sha256: str | None
    origin: str
    path: str
    patched: Patched | None = None
    blanked: Blanked | None = None

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"sha256": self.sha256, "size": self.size, "from": self.origin, "path": self.path}
        if self.patched is not None:
            found |= asdict(self.patched)
        if self.blanked is not None:
            found["without_local_paths"] = asdict(self.blanked)
        return found


@dataclass(frozen=True)
class LeftOut:
    """A file, or with a slash at its end a folder, of the base that does not come back. `size` of a folder: None."""

    name: str
    size: int | None
    why: str


@dataclass(frozen=True)
class Record:
    """`model`, `revision`: of the base, as in the summary."""

    model: str
    revision: str | None
    files: tuple[BaseFile, ...]
    left_out: tuple[LeftOut, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model": self.model,
            "revision": self.revision,
            "files": {file.name: file.as_json() for file in self.files},
            "left_out": [asdict(each) for each in self.left_out],
        }


def read_record(folder: Path, checkpoint: str) -> Record:
    """The record of a checkpoint, its paths checked to stay inside. BadInput where there is none or it is damaged."""
    if not (folder / FOLDER / NAME).is_file():
        raise BadInput(
            f"CHECKPOINT {checkpoint} has no {FOLDER}/{NAME}, which says how to give its base back: it is an ONNX "
            "folder, was saved anew since its export, or is of an unskill that did not keep the base's files yet"
        )
    content = read_json(folder / FOLDER / NAME, checkpoint, "CHECKPOINT")
    if content.get("format") != FORMAT:
        raise BadInput(
            f"CHECKPOINT {checkpoint}: {NAME} has format {content.get('format')!r}, this unskill knows {FORMAT}"
        )
    try:
        files = tuple(_file(name, each) for name, each in content["files"].items())
        left_out = tuple(_left_out(each) for each in content["left_out"])
        return Record(_text(content["model"]), content["revision"], files, left_out)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadInput(f"CHECKPOINT {checkpoint}: {FOLDER}/{NAME} is damaged ({error!r})") from error


def _file(name: str, found: Mapping[str, Any]) -> BaseFile:
    """Raises KeyError, TypeError or ValueError where `found` is not as `BaseFile.as_json` writes it."""
    patched, blanked = None, None
    if found["from"] == SHARD:
        rows_path = None if found["rows_path"] is None else _inside(found["rows_path"])
        rows = tuple((_text(tensor), index(row)) for tensor, row in found["rows"])
        if (rows_path is None) != (not rows):
            raise ValueError(f"rows of {name}")
        patched = Patched(_inside(found["header"]), rows_path, rows)
    if "without_local_paths" in found:
        blanked = Blanked(**found["without_local_paths"])
    if found["from"] not in (KEPT, CHECKPOINT, SHARD) or index(found["size"]) < 0:
        raise ValueError(f"{name} has no such size or origin")
    return BaseFile(
        _inside(name), found["size"], found["sha256"], found["from"], _inside(found["path"]), patched, blanked
    )


def _left_out(found: Mapping[str, Any]) -> LeftOut:
    return LeftOut(_text(found["name"]), found["size"], _text(found["why"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _inside(value: Any) -> str:
    """A path that stays inside the folder that it is relative to, in its plainest form."""
    path = PurePosixPath(_text(value))
    if str(path) != value or path.is_absolute() or ".." in path.parts or not path.parts or not value.isprintable():
        raise ValueError(f"{value!r} is not a path inside a folder")
    return value
