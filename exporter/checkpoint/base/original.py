"""The base's weight file from the checkpoint's, with the original header and the rows that R replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from exporter.checkpoint.shards import Piece, RowPatch, with_rows
from exporter.models.headers import parse_header, read_header


def read_start(path: Path) -> bytes:
    """A safetensors file up to its data: the length and the JSON of its header, padding included."""
    with path.open("rb") as file:
        return file.read(read_header(path).data_start)


def replaced_rows(source: Path, patches: Sequence[RowPatch]) -> list[RowPatch]:
    """The rows of the source that the patches replace; none for a row that is appended."""
    header = read_header(source)
    found = []
    with source.open("rb") as file:
        for patch in patches:
            info = header.tensors[patch.tensor]
            if patch.row < info.shape[0]:
                file.seek(header.data_start + info.begin + patch.row * len(patch.values))
                found.append(replace(patch, values=file.read(len(patch.values))))
    return found


def original_pieces(start: Path, patched: Path, rows: Sequence[RowPatch]) -> list[Piece]:
    """The pieces that make the source of a copy again from `patched`, the file that `copy_shard` wrote.

    start: a file with what `read_start` returns of the source; rows: its `replaced_rows`.

    BadInput: a header is broken. ValueError: the tensors are not those of `start`, or the rows do not fit them.
    """
    content = start.read_bytes()
    original, _ = parse_header(content[8:], len(content), start)
    header = read_header(patched)
    pieces: list[Piece] = [content]
    for name, info in original.tensors.items():
        there = header.tensors.get(name)
        if there is None or (there.dtype, there.shape[1:]) != (info.dtype, info.shape[1:]) or there.size < info.size:
            raise ValueError(f"tensor {name!r} is missing, or has another dtype or shape")
        kept = {patch.row: patch.values for patch in rows if patch.tensor == name}
        count = info.shape[0] if info.shape else 0
        if any(not 0 <= row < count or len(values) * count != info.size for row, values in kept.items()):
            raise ValueError(f"rows {sorted(kept)} do not fit tensor {name!r}")
        begin = header.data_start + there.begin
        pieces += with_rows(range(begin, begin + info.size), kept)
    return pieces
