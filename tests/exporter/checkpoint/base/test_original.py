"""Whatever rows are replaced in or appended to a file, of whatever header: undone, it is the same file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.checkpoint import shards
from exporter.checkpoint.base.original import original_pieces, read_start, replaced_rows
from exporter.checkpoint.shards import RowPatch, copy_shard, write_pieces
from exporter.common.errors import BadInput
from exporter.models.headers import ITEM_BYTES, read_header


def raw_file(path: Path, text: str, data: bytes) -> Path:
    header = text.encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes, list[RowPatch]]:
    """A header as some other tool may have written it, the data, and patches."""
    entries: dict[str, Any] = {}
    patches: list[RowPatch] = []
    end = 0
    names = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True))
    for name in set(names) - {"__metadata__"}:
        dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
        shape = draw(st.lists(st.integers(0, 9), max_size=3))
        size = ITEM_BYTES[dtype]
        for count in shape:
            size *= count
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
        if shape and draw(st.booleans()):
            row = ITEM_BYTES[dtype]
            for count in shape[1:]:
                row *= count
            for number in draw(st.sets(st.integers(0, shape[0]), max_size=3)):
                patches.append(RowPatch(name, number, draw(st.binary(min_size=row, max_size=row))))
    metadata = draw(st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
    items = draw(st.permutations([*entries.items(), *([("__metadata__", metadata)] if metadata is not None else [])]))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    text = json.dumps(dict(items), separators=separators, ensure_ascii=draw(st.booleans()))
    data = draw(st.binary(min_size=end, max_size=end)) if end < 200 else bytes(number % 251 for number in range(end))
    return text + " " * draw(st.integers(0, 70)), data, patches


def undo(source: Path, target: Path, patches: list[RowPatch], back: Path) -> str | None:
    start = target.with_name("start")
    start.write_bytes(read_start(source))
    return write_pieces(target, back, original_pieces(start, target, replaced_rows(source, patches)), fingerprint=True)


@settings(max_examples=150, deadline=None)
@given(file=files(), chunk=st.sampled_from([3, 64, shards.CHUNK]))
def test_patched_files_come_back(file: tuple[str, bytes, list[RowPatch]], chunk: int) -> None:
    text, data, patches = file
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CHUNK", chunk)
        source, target, back = (Path(folder, name) for name in ("in", "out", "back"))
        raw_file(source, text, data)
        copy_shard(source, target, patches)
        undo(source, target, patches, back)
        assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("row", [32, 3])
def test_tensors_that_were_laid_otherwise(tmp_path: Path, row: int) -> None:
    """An appended row of half a cache line would shift what follows: the copy has the longer tensor last."""
    entries = {"embed": {"dtype": "BF16", "shape": [32, 16], "data_offsets": [0, 1024]}}
    entries["other"] = {"dtype": "BF16", "shape": [4, 16], "data_offsets": [1024, 1152]}
    source = raw_file(tmp_path / "in", json.dumps(entries), bytes(number % 251 for number in range(1152)))
    patches = [RowPatch("embed", row, b"r" * 32)]
    copy_shard(source, tmp_path / "out", patches)
    assert list(read_header(tmp_path / "out").tensors) == (["other", "embed"] if row == 32 else ["embed", "other"])
    undo(source, tmp_path / "out", patches, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("entry", "rows"),
    [
        ({"dtype": "F16", "shape": [4, 2]}, []),
        ({"dtype": "F32", "shape": [4, 1]}, []),
        ({"dtype": "F32", "shape": [5, 2]}, []),
        ({}, [RowPatch("a", 4, bytes(8))]),
        ({}, [RowPatch("a", -1, bytes(8))]),
        ({}, [RowPatch("a", 0, bytes(7))]),
    ],
)
def test_what_does_not_fit(tmp_path: Path, entry: dict[str, Any], rows: list[RowPatch]) -> None:
    there = {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]}
    path = raw_file(tmp_path / "out", json.dumps({"a": there}), bytes(32))
    found = there | entry
    size = {"F32": 4, "F16": 2}[str(found["dtype"])] * found["shape"][0] * found["shape"][1]
    start = raw_file(tmp_path / "start", json.dumps({"a": found | {"data_offsets": [0, size]}}), b"")
    with pytest.raises(ValueError, match="tensor 'a'"):
        original_pieces(start, path, rows)


def test_broken_start(tmp_path: Path) -> None:
    there = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    path = raw_file(tmp_path / "out", json.dumps(there), bytes(4))
    (tmp_path / "start").write_bytes(b"12345678{")
    with pytest.raises(BadInput, match="start has a broken header"):
        original_pieces(tmp_path / "start", path, [])
