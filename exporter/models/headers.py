"""Headers of safetensors files: which tensors they hold, of which dtype and shape, and where.

A file is 8 bytes (length of the header, little-endian), a JSON header padded with spaces, and the tensors' bytes
without gaps. See https://huggingface.co/docs/safetensors for the format. No torch here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from operator import index
from pathlib import Path

from exporter.common.errors import BadInput
from exporter.common.files import human_size

MAX_HEADER = 100_000_000  # bytes; the format's own limit
ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
ITEM_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: dtype as spelt there, shape, first byte and end in the data section."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """A file's tensors in the order of their bytes, its metadata, and where in the file the data section begins."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int


def read_header(path: Path) -> Header:
    """Read and check the header. BadInput if the file cannot be read, is truncated or is not a safetensors file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start == b"version ":
                raise BadInput(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull")
            if len(start) < 8 or length > MAX_HEADER or file.read(1) != b"{":
                raise BadInput(f"{path} is not a safetensors file")
            text = b"{" + file.read(length - 1)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    data_start = 8 + length
    if size < data_start:
        raise BadInput(f"{path} is truncated: it ends within its header")
    header, end = parse_header(text, data_start, path)
    if size < data_start + end:
        raise BadInput(f"{path} is truncated: {human_size(data_start + end)} expected, {human_size(size)} there")
    if size > data_start + end:
        raise BadInput(f"{path} has {size - data_start - end} bytes too many at its end")
    return header


def parse_header(text: bytes, data_start: int, path: Path) -> tuple[Header, int]:
    """The header out of its JSON, and the length of the data. BadInput, which names `path`, if it is broken."""
    try:
        entries = json.loads(text)
        metadata = dict(entries.pop("__metadata__", {}))
        found = [
            (name, TensorInfo(entry["dtype"], tuple(map(index, entry["shape"])), *map(index, entry["data_offsets"])))
            for name, entry in entries.items()
        ]
        tensors = dict(sorted(found, key=lambda item: (item[1].begin, item[1].end)))
        end = 0
        for name, info in tensors.items():
            count = ITEM_BYTES.get(info.dtype)  # None: the size cannot be checked
            if info.begin != end or (count is not None and info.size != count * prod(info.shape)):
                raise ValueError(f"tensor {name} has another place or size than it should have")
            end = info.end
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path} has a broken header ({error})") from error
    return Header(tensors, metadata, data_start), end


def all_tensors(files: Iterable[Path]) -> dict[str, tuple[Path, TensorInfo]]:
    """The tensors of several files by name, and which file has them. BadInput as `read_header`, and where two have a
    tensor of the same name."""
    found: dict[str, tuple[Path, TensorInfo]] = {}
    for path in files:
        for name, info in read_header(path).tensors.items():
            if name in found:
                both = f"{found[name][0].name} and {path.name}"
                raise BadInput(f"tensor {name} occurs in two files: {both}; save the model anew (save_pretrained)")
            found[name] = path, info
    return found
