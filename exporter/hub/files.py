"""What of a checkpoint's folder goes up."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from exporter.errors import BadInput
from exporter.model import check_checkpoint, read_json

# Left behind by editors, Python and interrupted downloads. Hidden files and folders never go up either.
LEFT_OUT = ("*.tmp", "*.temp", "*.part", "*.incomplete", "*.lock", "*.pyc", "*~", "__pycache__")


@dataclass(frozen=True)
class Upload:
    """A file: its path inside the checkpoint, with slashes, its place on disk, and its size in bytes."""

    path: str
    source: Path
    size: int


def uploads(out: Path) -> list[Upload]:
    """The files of the checkpoint OUT that go up, sorted. Raises BadInput where OUT is no checkpoint of unskill."""
    check_folder(out)
    found = []
    for source in sorted(out.rglob("*")):
        path = source.relative_to(out)
        if source.is_file() and not any(is_left_out(part) for part in path.parts):
            found.append(Upload(path.as_posix(), source, source.stat().st_size))
    return found


def is_left_out(name: str) -> bool:
    return name.startswith(".") or any(fnmatch(name, pattern) for pattern in LEFT_OUT)


def check_folder(out: Path) -> None:
    name = out.resolve().name
    if not out.is_dir():
        raise BadInput(f"OUT {out}: there is no such folder")
    if any(out.glob("onnx/*.onnx")):
        raise BadInput(f"OUT {name} is an ONNX folder: push takes the checkpoint that it was made of")
    check_checkpoint(read_json(out / "config.json", name, "OUT"), name)
