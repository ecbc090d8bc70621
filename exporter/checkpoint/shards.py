"""Safetensors files without loading them: copied whole, or streamed with rows of a tensor replaced or appended.

For their form see `exporter.models.headers`. No torch here: importing it takes longer than copying a small model.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from exporter.common.errors import BadInput, RunFailed
from exporter.common.files import write_errors
from exporter.models.headers import ITEM_BYTES, Header, TensorInfo, all_tensors, read_header

CHUNK = 8 * 2**20  # bytes moved at a time: what a copy holds in memory, whatever the size of the file
WAITING = 3  # chunks that may wait for the hashing thread
FICLONE = 0x40049409
# Loaded tensors are often views of the mapped file, and matrix products may pick another kernel, with other last
# bits, for another alignment. So a tensor keeps its place modulo a cache line.
ALIGNMENT = 64

Piece = bytes | range  # of a file to be written: these bytes, or this range of the source's


@dataclass(frozen=True)
class RowPatch:
    """Row `row` of a tensor (rows, ...) becomes `values`, bytes of the tensor's dtype. A row behind the last one is
    appended."""

    tensor: str
    row: int
    values: bytes


def copy_shard(
    source: Path, target: Path, patches: Sequence[RowPatch] = (), *, fingerprint: bool = False, link: bool = False
) -> str | None:
    """Copy a safetensors file, with rows patched, in a bounded amount of memory; `target` must not exist yet.

    Without patches the file is reflinked where the file system can, else copied; `link` makes a hard link of it, which
    shares the source's permissions and any later change in place. Otherwise permissions are a new file's.
    `fingerprint` returns the sha256 of the target, computed in a thread beside the copying.

    BadInput: the source is broken or a hard link is not possible. RunFailed: the disk is full or fails. ValueError: a
    patch does not fit the file.
    """
    header = read_header(source)
    pieces: list[Piece] = _patched(header, patches) if patches else [range(source.stat().st_size)]
    if link and not patches:
        try:
            os.link(source.resolve(), target)  # resolved: files of the Hub's cache are links themselves
        except OSError as error:
            reason = "they are on different disks" if error.errno == errno.EXDEV else error.strerror
            raise BadInput(f"cannot hard-link {source} into {target.parent} ({reason}): leave out --link") from error
        return file_sha256(source) if fingerprint else None
    return write_pieces(source, target, pieces, fingerprint=fingerprint, clone=not patches)


def write_pieces(
    source: Path, target: Path, pieces: Sequence[Piece], *, fingerprint: bool = False, clone: bool = False
) -> str | None:
    """Write a new file out of pieces of another one, in a bounded amount of memory; its sha256 with `fingerprint`.

    clone: the pieces are the whole source, so that the file system may share its blocks. RunFailed as `copy_shard`.
    """
    digest = hashlib.sha256() if fingerprint else None
    with (
        source.open("rb", buffering=0) as reader,
        write_errors(target, sum(map(len, pieces))),
        target.open("xb", buffering=0) as writer,
    ):
        cloned = clone and _reflink(reader.fileno(), writer.fileno())
        _move(reader.fileno(), None if cloned else writer.fileno(), pieces, digest)
    return digest.hexdigest() if digest else None


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def shard_names(count: int) -> list[str]:
    """Names of a checkpoint's files. A single one is named so too: `model.safetensors` would hide an index."""
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def merged_index(shards: Sequence[Path]) -> dict[str, Any]:
    """Content of model.safetensors.index.json for these files. BadInput if a tensor occurs in two of them."""
    found = all_tensors(shards)
    weight_map = {name: path.name for name, (path, _) in sorted(found.items())}
    return {"metadata": {"total_size": sum(info.size for _, info in found.values())}, "weight_map": weight_map}


def with_rows(place: range, rows: Mapping[int, bytes]) -> list[Piece]:
    """A tensor's place in a file with other bytes for some of its rows; rows behind its end are appended."""
    pieces: list[Piece] = []
    start = place.start
    for row in sorted(rows):
        at = min(place.start + row * len(rows[row]), place.stop)
        pieces += [range(start, at), rows[row]]
        start = min(at + len(rows[row]), place.stop)
    return [*pieces, range(start, place.stop)]


def _patched(header: Header, patches: Sequence[RowPatch]) -> list[Piece]:
    """The pieces of the patched file: its header, then every tensor. ValueError if a patch does not fit."""
    data: dict[str, list[Piece]] = {}
    tensors = dict(header.tensors)
    for name, info in header.tensors.items():
        start, end = header.data_start + info.begin, header.data_start + info.end
        rows = {patch.row: patch.values for patch in patches if patch.tensor == name}
        if rows:
            count = max(info.shape[0], max(rows) + 1)
            size = prod(info.shape[1:]) * ITEM_BYTES[info.dtype]
            missing = set(range(info.shape[0], count)) - rows.keys()
            if missing or min(rows) < 0 or any(len(values) != size for values in rows.values()):
                raise ValueError(f"rows {sorted(rows)} do not fit {name}: {info}")
            tensors[name] = replace(info, shape=(count, *info.shape[1:]))
        data[name] = with_rows(range(start, end), rows)
    if unknown := {patch.tensor for patch in patches} - data.keys():
        raise ValueError(f"no tensor {', '.join(sorted(unknown))} in the file")
    placed = _place(header, tensors, {name: sum(map(len, pieces)) for name, pieces in data.items()})
    return [_encode_header(header, placed), *(piece for name in placed for piece in data[name])]


def _place(header: Header, tensors: dict[str, TensorInfo], sizes: dict[str, int]) -> dict[str, TensorInfo]:
    """Give tensors of new sizes their places: in the old order, or the longer ones last if only that keeps every
    tensor's place modulo ALIGNMENT."""

    def place(names: list[str]) -> dict[str, TensorInfo]:
        end, placed = 0, {}
        for name in names:
            placed[name] = replace(tensors[name], begin=end, end=end + sizes[name])
            end += sizes[name]
        return placed

    in_order = list(tensors)
    longer_last = sorted(in_order, key=lambda name: tensors[name].shape != header.tensors[name].shape)
    for layout in (place(in_order), place(longer_last)):
        if all((info.begin - header.tensors[name].begin) % ALIGNMENT == 0 for name, info in layout.items()):
            return layout
    return place(in_order)


def _encode_header(header: Header, tensors: dict[str, TensorInfo]) -> bytes:
    """Length and JSON of a header, padded so that the data begins where the source's does modulo ALIGNMENT."""
    entries: dict[str, Any] = {"__metadata__": header.metadata} if header.metadata else {}
    for name, info in tensors.items():
        entries[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [info.begin, info.end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * ((header.data_start - 8 - len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _reflink(reader: int, writer: int) -> bool:
    """Let the target share the source's blocks until one of them changes; False where the file system cannot."""
    if sys.platform == "linux":
        with suppress(OSError):
            fcntl.ioctl(writer, FICLONE, reader)
            return True
    return False


def _move(reader: int, writer: int | None, pieces: Sequence[Piece], digest: hashlib._Hash | None) -> None:
    """Write and hash the pieces, either of which may be left out. At most WAITING + 2 chunks are in memory."""
    if writer is None and digest is None:
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting: deque[Future[None]] = deque()
        for piece in pieces:
            if writer is not None and digest is None and isinstance(piece, range):
                piece = _copy_in_kernel(reader, writer, piece)
            for chunk in _chunks(reader, piece):
                if digest:
                    waiting.append(thread.submit(digest.update, chunk))
                if writer is not None:
                    _write(writer, chunk)
                if len(waiting) > WAITING:
                    waiting.popleft().result()


def _copy_in_kernel(reader: int, writer: int, piece: range) -> range:
    """Copy as much of the piece as the kernel will, and return the rest."""
    if sys.platform == "linux":
        with suppress(OSError):  # not possible here, or the disk is full: writing the rest finds out
            while piece and (count := os.copy_file_range(reader, writer, min(len(piece), CHUNK), piece.start)):
                piece = piece[count:]
    return piece


def _chunks(reader: int, piece: Piece) -> Iterator[bytes]:
    if isinstance(piece, bytes):
        yield piece
        return
    while piece:
        chunk = os.pread(reader, min(len(piece), CHUNK), piece.start)
        if not chunk:
            raise RunFailed("a file of the base model became shorter while it was copied")
        yield chunk
        piece = piece[len(chunk) :]


def _write(writer: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(writer, view) :]
