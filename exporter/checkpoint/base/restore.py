"""`unskill restore`: the base's files out of a checkpoint, each compared with its sha256 before any is in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.checkpoint.base.original import original_pieces
from exporter.checkpoint.base.record import BaseFile, Patched, read_record
from exporter.checkpoint.shards import Piece, RowPatch, write_pieces
from exporter.common.errors import BadInput, RunFailed
from exporter.common.files import check_apart, human_size, read_json, write_errors
from exporter.common.hub import download
from exporter.common.staging import Staging, check_target, repair
from exporter.models.files import check_checkpoint


@dataclass(frozen=True)
class RestoreSettings:
    """Settings of `unskill restore`; the names are those of the flags."""

    checkpoint: str
    out: Path
    overwrite: bool = False
    quiet: bool = False


def restore(settings: RestoreSettings, notify: Callable[[str], None]) -> dict[str, Any]:
    """Write the base's files to settings.out and return what was written, a JSON object.

    "files" has for each name its size, sha256, whether it was "compared" with the base's, and how many local paths it
    comes "without"; "left_out" is what an export does not keep.

    Raises BadInput for a checkpoint or folder that cannot be used; RunFailed where a file would come back otherwise
    than the base had it, or the disk is full. Nothing is written then.
    """
    folder, name, commit = Path(settings.checkpoint), Path(settings.checkpoint).resolve().name, None
    if not os.path.isdir(folder):
        name = settings.checkpoint
        folder, commit = download(name, "CHECKPOINT", ["config.json", "reproduce/*"])
    check_checkpoint(read_json(folder / "config.json", name, "CHECKPOINT"), name)
    record = read_record(folder, name)
    check_apart(settings.out, folder, "DIR and CHECKPOINT")
    if commit is not None:
        download(name, "CHECKPOINT", [file.path for file in record.files], commit)
    for line in repair(settings.out):
        notify(line)
    size = sum(file.size for file in record.files)
    check_target(settings.out, settings.overwrite, size, what="model")
    files: dict[str, Any] = {}
    with Staging(settings.out, settings.overwrite) as staging:
        for file in record.files:
            if file.patched is not None:
                notify(f"restoring {file.name}, {human_size(file.size)} ...")
            files[file.name] = _restore_file(folder, file, staging.path, f"CHECKPOINT {name}")
        staging.commit()
    return {
        "checkpoint": name,
        "model": record.model,
        "revision": record.revision,
        "size": size,
        "files": files,
        "left_out": [vars(each) for each in record.left_out],
    }


def _restore_file(folder: Path, file: BaseFile, out: Path, what: str) -> Mapping[str, Any]:
    """Write one file. RunFailed where it is not the base's; BadInput where what it takes is not there."""
    source, target = _readable(folder, file.path, what), out / file.name
    pieces: list[Piece] = [range(source.stat().st_size)]
    if file.patched is not None:
        start, rows = _readable(folder, file.patched.header, what), _rows(folder, file.patched, what)
        try:
            pieces = original_pieces(start, source, rows)
        except ValueError as error:
            raise RunFailed(
                f"{file.name}: {file.path} of {what} was altered ({error}); nothing was written"
            ) from error
    with write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    sha256 = write_pieces(source, target, pieces, fingerprint=True, clone=file.patched is None)
    if target.stat().st_size != file.size or file.sha256 not in (None, sha256):
        raise RunFailed(
            f"{file.name}: would not come back as the base had it, because {file.path} of {what} was altered since "
            "the export; nothing was written"
        )
    return {
        "size": file.size,
        "sha256": sha256,
        "compared": file.sha256 is not None,
        "without_local_paths": file.blanked.count if file.blanked else 0,
    }


def _readable(folder: Path, name: str, what: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise BadInput(f"{what} has no {name}, which it takes to give the base back")
    if not os.access(path, os.R_OK):
        raise BadInput(f"{what}: {name} cannot be read")
    return path


def _rows(folder: Path, patched: Patched, what: str) -> list[RowPatch]:
    """The rows that R replaced: of one length, one after the other in their file."""
    if patched.rows_path is None:
        return []
    content = _readable(folder, patched.rows_path, what).read_bytes()
    size = len(content) // len(patched.rows)
    parts = (content[size * number : size * (number + 1)] for number in range(len(patched.rows)))
    return [RowPatch(tensor, row, part) for (tensor, row), part in zip(patched.rows, parts, strict=True)]
