"""`reproduce/base/files.json`: every file of the base, and how it comes back out of the checkpoint."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, model_validator

from exporter.checkpoint.layout import BASE_RECORD
from exporter.checkpoint.summary import Part
from exporter.common.errors import BadInput
from exporter.common.files import read_json

FORMAT = 1


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if str(path) != value or path.is_absolute() or ".." in path.parts or not path.parts or not value.isprintable():
        raise ValueError(f"{value!r} is not a path inside a folder")
    return value


Inside = Annotated[str, AfterValidator(_inside)]
"""A path that stays inside the folder that it is relative to, in its plainest form."""


class Blanked(Part):
    """`count` local paths were removed from a file; size and sha256 are of the file as the base had it."""

    count: int
    size: int
    sha256: str


class BaseFile(Part):
    """One file of the base.

    Attributes:
        sha256: Of the bytes that come back; None for weights of an export with --no-fingerprints.
        size: Their number.
        origin: "kept": from BASE_FOLDER; "checkpoint": a file of the checkpoint with the same bytes; "shard": a
            weight file that R was written into.
        path: Of the file that it comes from; all paths are inside the checkpoint.
        header: Of a shard: the file with the original header's bytes.
        rows_path: The file with the rows that R replaced, None where R was appended.
        rows: Tensor and number of each of these rows, in the order of their bytes.
        without_local_paths: What was removed, if anything.
    """

    sha256: str | None
    size: NonNegativeInt
    origin: Literal["kept", "checkpoint", "shard"] = Field(validation_alias="from", serialization_alias="from")
    path: Inside
    header: Inside | None = None
    rows_path: Inside | None = None
    rows: tuple[tuple[str, int], ...] = ()
    without_local_paths: Blanked | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.origin == "shard") != (self.header is not None) or (self.rows_path is None) != (not self.rows):
            raise ValueError("header, rows_path and rows do not fit together")
        return self


class LeftOut(Part):
    """A file, or with a slash at its end a folder, of the base that does not come back. `size` of a folder: None."""

    name: str
    size: int | None
    why: str


class Record(Part):
    """`model`, `revision`: of the base, as in the summary; `files`: by name."""

    format: int
    model: str
    revision: str | None
    files: dict[Inside, BaseFile]
    left_out: tuple[LeftOut, ...]


def read_record(folder: Path, checkpoint: str) -> Record:
    """The record of a checkpoint. Raises BadInput where there is none, or it is damaged or of another format."""
    if not (folder / BASE_RECORD).is_file():
        raise BadInput(
            f"CHECKPOINT {checkpoint} has no {BASE_RECORD}, which says how to give its base back: it is an ONNX "
            "folder, was saved anew since its export, or was written by an unskill that did not keep the base's files"
        )
    content = read_json(folder / BASE_RECORD, checkpoint, "CHECKPOINT")
    if content.get("format") != FORMAT:
        raise BadInput(
            f"CHECKPOINT {checkpoint}: {BASE_RECORD} has format {content.get('format')!r}, this unskill reads {FORMAT}"
        )
    try:
        return Record.from_json(content)
    except ValueError as error:
        raise BadInput(f"CHECKPOINT {checkpoint}: {BASE_RECORD} is damaged ({error!r})") from error
