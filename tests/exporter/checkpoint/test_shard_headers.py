"""Headers of safetensors files that are damaged are bad input."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.checkpoint.shards import copy_shard
from exporter.common.errors import BadInput
from exporter.models.headers import read_header
from tests.exporter.checkpoint.test_shards import raw_file

GOOD = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def entry(**changes: object) -> dict[str, object]:
    return {"a": GOOD["a"] | changes}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (GOOD, bytes(15), "truncated"),
        (GOOD, bytes(17), "1 bytes too many"),
        (entry(shape=[2, 3]), bytes(16), "broken header"),
        (entry(shape=[2.0, 2]), bytes(16), "broken header"),
        (entry(data_offsets=[4, 20]), bytes(20), "broken header"),
        (entry(data_offsets=[0]), bytes(16), "broken header"),
        (entry(dtype=None), bytes(16), None),
        (GOOD | {"b": 7}, bytes(16), "broken header"),
        (GOOD | {"__metadata__": 7}, bytes(16), "broken header"),
        ([GOOD], bytes(16), "not a safetensors file"),
    ],
)
def test_broken_headers(tmp_path: Path, header: object, data: bytes, message: str | None) -> None:
    path = raw_file(tmp_path / "broken.safetensors", header, data)
    if message is None:  # a dtype that is not known here is copied as it is
        return copy_shard(path, tmp_path / "copy")
    with pytest.raises(BadInput, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"<!doctype html>" * 9, b"version https://git-lfs.github.com/spec/v1"]
)
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(BadInput, match="git lfs pull" if b"lfs" in content else "not a safetensors file"):
        read_header(tmp_path / "x")
    with pytest.raises(BadInput, match="cannot read"):
        read_header(tmp_path / "missing")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_are_bad_input_or_read(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = raw_file(Path(folder, "x"), GOOD, bytes(16))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 17))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(len(content) - 40, len(content)))])
        try:
            header = read_header(path)
        except BadInput:
            return
        assert header.data_start + max(info.end for info in header.tensors.values()) == path.stat().st_size
