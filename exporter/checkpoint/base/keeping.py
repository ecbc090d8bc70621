"""What a checkpoint keeps of its base, so that `unskill restore` gives every file of it back.

The weights are in the checkpoint but for R, which is undone by the original header and the rows that R replaced. Small
files are kept whole: mostly tokenizer.json, a few MB and up to 35 MB of a vocabulary of 260,000.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from exporter.checkpoint.base.local_paths import of_base
from exporter.checkpoint.base.original import read_start, replaced_rows
from exporter.checkpoint.base.record import (
    CHECKPOINT,
    FOLDER,
    KEPT,
    NAME,
    SHARD,
    BaseFile,
    Blanked,
    LeftOut,
    Patched,
    Record,
)
from exporter.checkpoint.shards import RowPatch, file_sha256
from exporter.common.files import human_size, write_errors, write_json
from exporter.models.files import LICENCES, SMALL_FILES, Base

TEMPLATES = "additional_chat_templates"
"""The one folder inside a model that `from_pretrained` reads."""
# Under its own name git would obey it there, and take the kept files for others than they are.
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

    fingerprints: also read every patched weight file once more for its sha256. RunFailed where the disk is full.
    """
    (folder / FOLDER).mkdir(parents=True)
    files = [_keep_shard(folder, base, shard, fingerprints) for shard in shards]
    left_out = []
    for name, path in _entries(base.folder):
        if name in base.shards:
            continue
        kept = _keep(folder, name, path, base)
        files.append(kept) if isinstance(kept, BaseFile) else left_out.append(kept)
    record = Record(base.name, base.revision, tuple(files), tuple(left_out))
    with write_errors(folder / FOLDER / NAME):
        write_json(folder / FOLDER / NAME, record.as_json())


def kept_size(base: Base) -> int:
    """Bytes of the base's files that are kept, or a little more."""
    found = ((name, path) for name, path in _entries(base.folder) if name not in base.shards)
    return sum(path.stat().st_size for name, path in found if _why_not(name, path) is None)


def _entries(folder: Path) -> list[tuple[str, Path]]:
    """The base's files by name, those of TEMPLATES too; any other folder once, with a slash at its end."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name == TEMPLATES and path.is_dir():
            found += [(f"{TEMPLATES}/{each.name}", each) for each in sorted(path.iterdir())]
        else:
            found.append((f"{path.name}/" if path.is_dir() else path.name, path))
    return found


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
    """Keep one file that is no weight file in use, unless it is not to be kept."""
    why = _why_not(name, path)
    if why is not None:
        size = path.stat().st_size if path.is_file() else None
        return LeftOut(os.fsencode(name).decode("utf-8", "replace"), size, why)
    content = path.read_bytes()
    cleaned, count = of_base(base.folder, base.revision, name, content)
    if count and not _is_text(content):
        return LeftOut(name, len(content), "holds a local path")
    sha256 = hashlib.sha256(cleaned).hexdigest()
    # Licences only: what else is equal now, as chat templates are, belongs to a base that loads by itself.
    there = folder / name
    if _is_any(path, LICENCES) and there.is_file() and there.read_bytes() == cleaned:
        return BaseFile(name, len(content), sha256, CHECKPOINT, name)
    kept = f"{FOLDER}/{RENAMED.get(name, name)}"
    target = folder / kept
    with write_errors(target, len(cleaned)):
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(cleaned)
    blanked = Blanked(count, len(content), hashlib.sha256(content).hexdigest()) if count else None
    return BaseFile(name, len(cleaned), sha256, KEPT, kept, blanked=blanked)


def _keep_shard(folder: Path, base: Base, shard: CopiedShard, fingerprints: bool) -> BaseFile:
    """Keep what undoes R in one weight file; of a file that was copied whole its name is all that changed."""
    source = base.folder / shard.source
    size = source.stat().st_size
    if not shard.patches:
        return BaseFile(shard.source, size, shard.sha256, CHECKPOINT, shard.target)
    header, rows_path = f"{FOLDER}/{shard.target}.header", None
    with write_errors(folder / header):
        (folder / header).write_bytes(read_start(source))
    rows = replaced_rows(source, shard.patches)
    if rows:
        rows_path = f"{FOLDER}/{shard.target}.rows"
        with write_errors(folder / rows_path):
            (folder / rows_path).write_bytes(b"".join(row.values for row in rows))
    patched = Patched(header, rows_path, tuple((row.tensor, row.row) for row in rows))
    sha256 = file_sha256(source) if fingerprints else None
    return BaseFile(shard.source, size, sha256, SHARD, shard.target, patched)


def _is_any(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in patterns)


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode("utf-8")
    except UnicodeDecodeError:
        return False
