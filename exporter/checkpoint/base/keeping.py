"""What a checkpoint keeps of its base, so that `unskill restore` gives every file back.

Weight files differ from the base's by R only: the original header and the rows that R replaced undo that. Small files
are kept whole: mostly tokenizer.json, a few MB, and up to 35 MB for a vocabulary of 260,000.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from exporter.checkpoint.base.local_paths import of_base
from exporter.checkpoint.base.original import read_start, replaced_rows
from exporter.checkpoint.base.record import FORMAT, BaseFile, Blanked, LeftOut, Record
from exporter.checkpoint.layout import BASE_FOLDER, BASE_RECORD
from exporter.checkpoint.shards import RowPatch, file_sha256
from exporter.common.files import human_size, write_json
from exporter.models.files import LICENCES, SMALL_FILES, TEMPLATES, Base

# Git would obey a .gitattributes there, and change the kept files.
RENAMED = {".gitattributes": "gitattributes"}
OTHER_WEIGHTS = {
    "pickle": ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt"),
    "weights that were not used": ("*.safetensors", "*.gguf", "*.onnx", "*.onnx_data", "*.h5", "*.msgpack"),
}
MAX_SIZE = 64 * 2**20  # bytes; the largest tokenizer.json of a supported family has 34 MB


@dataclass(frozen=True)
class CopiedShard:
    """A weight file of the base, `source`, as it was copied to `target`; the target's sha256 if that was taken."""

    source: str
    target: str
    patches: tuple[RowPatch, ...]
    sha256: str | None


def keep_base(folder: Path, base: Base, shards: Sequence[CopiedShard], fingerprints: bool) -> None:
    """Write `reproduce/base/` of the checkpoint in `folder`, in which all else but `reproduce/` is there already.

    fingerprints: also read every patched weight file once more for its sha256.
    """
    (folder / BASE_FOLDER).mkdir(parents=True)
    files = {shard.source: _keep_shard(folder, base, shard, fingerprints) for shard in shards}
    left_out = []
    for name, path in _entries(base):
        kept = _keep(folder, name, path, base)
        if isinstance(kept, LeftOut):
            left_out.append(kept)
        else:
            files[name] = kept
    record = Record(format=FORMAT, model=base.name, revision=base.revision, files=files, left_out=tuple(left_out))
    write_json(folder / BASE_RECORD, record.model_dump(mode="json", by_alias=True, exclude_unset=True))


def kept_size(base: Base) -> int:
    """Bytes of the base's files that are kept, or a little more."""
    return sum(path.stat().st_size for name, path in _entries(base) if _why_not(name, path) is None)


def _entries(base: Base) -> Iterator[tuple[str, Path]]:
    """The base's files but its weights, by name, those of TEMPLATES too; any other folder once, with a slash."""
    for path in sorted(base.folder.iterdir()):
        if path.name == TEMPLATES and path.is_dir():
            yield from ((f"{TEMPLATES}/{each.name}", each) for each in sorted(path.iterdir()))
        elif path.name not in base.shards:
            yield f"{path.name}/" if path.is_dir() else path.name, path


def _why_not(name: str, path: Path) -> str | None:
    """Why a file of the base does not come back; None for those that do."""
    if path.is_dir():
        return "folder"
    if not path.is_file() or not os.access(path, os.R_OK):
        return "cannot be read"
    for why, patterns in OTHER_WEIGHTS.items():
        if _is_any(path, patterns):
            return why
    if not _is_any(path, SMALL_FILES) or not name.isprintable():
        return "no kind of file that is kept"
    if path.stat().st_size > MAX_SIZE:
        return f"larger than {human_size(MAX_SIZE)}"
    return None


def _keep(folder: Path, name: str, path: Path, base: Base) -> BaseFile | LeftOut:
    """Keep one file, unless there is a reason not to."""
    why = _why_not(name, path)
    if why is not None:
        size = path.stat().st_size if path.is_file() else None
        return LeftOut(name=os.fsencode(name).decode("utf-8", "replace"), size=size, why=why)
    content = path.read_bytes()
    cleaned, count = of_base(base.folder, base.revision, name, content)
    if count and (b"\0" in content or content.decode("utf-8", "ignore").encode() != content):  # not a text
        return LeftOut(name=name, size=len(content), why="holds a local path")
    sha256 = hashlib.sha256(cleaned).hexdigest()
    # Licences only: other equal files, such as chat templates, may change with the checkpoint.
    there = folder / name
    if _is_any(path, LICENCES) and there.is_file() and there.read_bytes() == cleaned:
        return BaseFile(sha256=sha256, size=len(content), origin="checkpoint", path=name)
    kept = BaseFile(sha256=sha256, size=len(cleaned), origin="kept", path=f"{BASE_FOLDER}/{RENAMED.get(name, name)}")
    (folder / kept.path).parent.mkdir(exist_ok=True)
    (folder / kept.path).write_bytes(cleaned)
    if not count:
        return kept
    blanked = Blanked(count=count, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return kept.model_copy(update={"without_local_paths": blanked})


def _keep_shard(folder: Path, base: Base, shard: CopiedShard, fingerprints: bool) -> BaseFile:
    """Keep what undoes R in one weight file; a file that was copied whole has another name, and nothing else."""
    source = base.folder / shard.source
    size = source.stat().st_size
    if not shard.patches:
        return BaseFile(sha256=shard.sha256, size=size, origin="checkpoint", path=shard.target)
    header, rows_path = f"{BASE_FOLDER}/{shard.target}.header", f"{BASE_FOLDER}/{shard.target}.rows"
    (folder / header).write_bytes(read_start(source))
    if rows := replaced_rows(source, shard.patches):
        (folder / rows_path).write_bytes(b"".join(row.values for row in rows))
    return BaseFile(
        sha256=file_sha256(source) if fingerprints else None,
        size=size,
        origin="shard",
        path=shard.target,
        header=header,
        rows_path=rows_path if rows else None,
        rows=tuple((row.tensor, row.row) for row in rows),
    )


def _is_any(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in patterns)
