"""The files of a checkpoint that are uploaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from exporter.checkpoint.card.text import CARD, named_card
from exporter.checkpoint.layout import HASHES
from exporter.common.errors import BadInput
from exporter.common.files import json_text, link_out, read_json
from exporter.common.text import printable
from exporter.models.files import check_checkpoint

# Left behind by editors, Python and interrupted downloads. Hidden files are not uploaded either.
LEFT_OUT = ("*.tmp", "*.temp", "*.part", "*.incomplete", "*.lock", "*.pyc", "*~", "__pycache__")


@dataclass(frozen=True)
class Upload:
    """A file: its path inside the checkpoint, with slashes, its place on disk or its content, its size in bytes."""

    path: str
    source: Path | bytes
    size: int


def uploads(out: Path) -> list[Upload]:
    """The files of the checkpoint OUT to upload, sorted. Raises BadInput where OUT is not a checkpoint of unskill, or
    one of the files is a link to something outside of it."""
    check_folder(out)
    hashes = out / HASHES
    recorded = read_json(hashes, out.name, "OUT") if hashes.is_file() else {}  # verify says what is missing
    found = []
    for source in sorted(out.rglob("*")):
        path = source.relative_to(out)
        # The export's own files whatever their names: without one of them verify would reject what was pushed.
        if source.is_file() and (path.as_posix() in recorded or not any(map(is_left_out, path.parts))):
            found.append(Upload(path.as_posix(), source, source.stat().st_size))
    if (link := link_out(out, (each.source for each in found if isinstance(each.source, Path)))) is not None:
        raise BadInput(
            f"OUT {out.resolve().name}: {printable(link.relative_to(out).as_posix())} is a link to a file outside of "
            "the folder, which would be uploaded: take it out, or copy the file"
        )
    return found


def named(files: Sequence[Upload], out: Path, repo: str) -> list[Upload]:
    """The same files, with the repo's name in the card, and its new sha256 in hashes.json; nothing on disk changes.

    OUT must be as its export wrote it.
    """
    card = named_card((out / CARD).read_text(encoding="utf-8"), repo).encode()
    hashes = read_json(out / HASHES, out.name, "OUT") | {CARD: hashlib.sha256(card).hexdigest()}
    contents = {CARD: card, HASHES: json_text(hashes).encode()}
    other = {path: Upload(path, content, len(content)) for path, content in contents.items()}
    return [other.get(each.path, each) for each in files]


def is_left_out(name: str) -> bool:
    return name.startswith(".") or any(fnmatch(name, pattern) for pattern in LEFT_OUT)


def check_folder(out: Path) -> None:
    name = out.resolve().name
    if not os.path.isdir(out):  # unlike Path.is_dir also of a name too long for a file
        raise BadInput(f"OUT {out}: there is no such folder")
    if any(out.glob("onnx/*.onnx")):
        raise BadInput(f"OUT {name} is an ONNX folder: push the checkpoint that it was made from")
    check_checkpoint(read_json(out / "config.json", name, "OUT"), name)
