"""`unskill restore`: the base's files from a checkpoint, each compared with its sha256 before any is in place."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.checkpoint.base.original import original_pieces
from exporter.checkpoint.base.record import BaseFile, read_record
from exporter.checkpoint.shards import Piece, RowPatch, write_pieces
from exporter.common.errors import BadInput, RunFailed
from exporter.common.files import check_apart, human_size, write_errors
from exporter.common.hub import download
from exporter.common.staging import Staging, check_target, repair
from exporter.models.files import find_checkpoint


@dataclass(frozen=True)
class RestoreSettings:
    """Settings of `unskill restore`; the names are those of the flags."""

    checkpoint: str
    out: Path
    overwrite: bool = False
    quiet: bool = False


def restore(settings: RestoreSettings, notify: Callable[[str], None]) -> dict[str, Any]:
    """Write the base's files to settings.out and return what was written, a JSON object.

    "files" has for each name its size, sha256, whether it was "compared" with the base's, and the number of local
    paths that it comes back without; "left_out" is what an export does not keep.

    Raises BadInput for a checkpoint or folder that cannot be used; RunFailed where a file would differ from the base's
    or the disk is full. Nothing is written then.
    """
    folder, name, commit, _ = find_checkpoint(settings.checkpoint, ["config.json", "reproduce/*"])
    record = read_record(folder, name)
    check_apart(settings.out, folder, "DIR and CHECKPOINT")
    if commit is not None:
        download(name, "CHECKPOINT", [file.path for file in record.files.values()], commit)
    for line in repair(settings.out):
        notify(line)
    size = sum(file.size for file in record.files.values())
    check_target(settings.out, settings.overwrite, size, what="model")
    files: dict[str, Any] = {}
    with Staging(settings.out, settings.overwrite) as staging:
        for file, each in record.files.items():
            if each.header is not None:
                notify(f"restoring {file}, {human_size(each.size)} ...")
            files[file] = _restore_file(folder, file, each, staging.path, f"CHECKPOINT {name}")
        staging.commit()
    return {
        "checkpoint": name,
        "model": record.model,
        "revision": record.revision,
        "size": size,
        "files": files,
        "left_out": [each.model_dump() for each in record.left_out],
    }


def _restore_file(folder: Path, name: str, file: BaseFile, out: Path, what: str) -> dict[str, Any]:
    """Write one file. RunFailed where it is not the base's; BadInput where what it takes is not there."""
    source, target = _readable(folder, file.path, what), out / name
    pieces: list[Piece] = [range(source.stat().st_size)]
    if file.header is not None:
        start, rows = _readable(folder, file.header, what), _rows(folder, file, what)
        try:
            pieces = original_pieces(start, source, rows)
        except ValueError as error:
            raise RunFailed(f"{name}: {file.path} of {what} was altered ({error}); nothing was written") from error
    with write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    sha256 = write_pieces(source, target, pieces, fingerprint=True, clone=file.header is None)
    if target.stat().st_size != file.size or file.sha256 not in (None, sha256):
        raise RunFailed(
            f"{name}: would not come back as the base had it, because {file.path} of {what} was altered since the "
            "export; nothing was written"
        )
    return {
        "size": file.size,
        "sha256": sha256,
        "compared": file.sha256 is not None,
        "without_local_paths": file.without_local_paths.count if file.without_local_paths else 0,
    }


def _readable(folder: Path, name: str, what: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise BadInput(f"{what} has no {name}, without which the base cannot be restored")
    if not os.access(path, os.R_OK):
        raise BadInput(f"{what}: {name} cannot be read")
    return path


def _rows(folder: Path, file: BaseFile, what: str) -> list[RowPatch]:
    """The rows that R replaced: of one length, one after the other in their file."""
    if file.rows_path is None:
        return []
    content = _readable(folder, file.rows_path, what).read_bytes()
    size = len(content) // len(file.rows)
    return [
        RowPatch(tensor, row, content[size * number : size * (number + 1)])
        for number, (tensor, row) in enumerate(file.rows)
    ]
