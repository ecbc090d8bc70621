"""Shards: whatever is streamed equals what loading, changing and saving would give; broken files are named."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exporter.checkpoint import shards
from exporter.checkpoint.shards import (
    RowPatch,
    copy_shard,
    merged_index,
    shard_names,
)
from exporter.checkpoint.tensors import encode_row, write_tensors
from exporter.common.errors import BadInput, RunFailed
from exporter.common.staging import Staging
from exporter.models.headers import read_header

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal names, dtypes, shapes and bytes."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and torch.equal(one[name].reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8))
        for name in one
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def raw_file(path: Path, header: object, data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small shard: a vocabulary of 10 rows, a layer and a bias."""
    path = tmp_path / "base.safetensors"
    torch.manual_seed(0)
    tensors = {"embed": torch.randn(10, 64), "layer": torch.randn(6, 64), "bias": torch.randn(5)}
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_appended_row_equals_cat(tmp_path: Path, dtype: str) -> None:
    tensors = {"a": torch.ones(3), "embed": torch.randn(7, 5).to(DTYPES[dtype]), "z": torch.arange(4)}
    row = torch.randn(5)
    safetensors.torch.save_file(tensors, tmp_path / "in", {"format": "pt", "note": "ü"})
    copy_shard(tmp_path / "in", tmp_path / "out", [RowPatch("embed", 7, encode_row(row, dtype))])
    tensors["embed"] = torch.cat([tensors["embed"], row.to(DTYPES[dtype])[None]])
    assert same(safetensors.torch.load_file(tmp_path / "out"), tensors)
    assert read_header(tmp_path / "out").metadata == {"format": "pt", "note": "ü"}


@st.composite
def patched_sets(draw: st.DrawFn) -> tuple[dict[str, Tensor], list[RowPatch], dict[str, Tensor]]:
    """Tensors, patches for them, and the tensors they should give."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    patches: list[RowPatch] = []
    for number in range(draw(st.integers(1, 5))):
        name = f"tensor {number}"
        shape = draw(st.lists(st.integers(0, 9), max_size=3))
        dtype = draw(st.sampled_from([*DTYPES, "I64", "I8", "BOOL"]))
        if dtype in DTYPES and shape and draw(st.booleans()):
            tensor = torch.randn(shape).to(DTYPES[dtype])
            rows = draw(st.sets(st.integers(0, shape[0] + 1)))
            rows.discard(shape[0] + 1) if shape[0] not in rows else None
            grown = torch.cat([tensor, torch.zeros(2, *shape[1:], dtype=tensor.dtype)])
            for row in draw(st.permutations(sorted(rows))):
                grown[row] = torch.randn(shape[1:]).to(tensor.dtype)
                patches.append(RowPatch(name, row, encode_row(grown[row].float().reshape(-1), dtype)))
            after[name] = grown[: max(rows | {shape[0] - 1}) + 1]
        else:
            kinds = {"I64": torch.int64, "I8": torch.int8, "BOOL": torch.bool}
            tensor = torch.randint(0, 2, shape).to((DTYPES | kinds)[dtype])
            after[name] = tensor
        before[name] = tensor
    return before, patches, after


@settings(max_examples=80, deadline=None)
@given(case=patched_sets(), fingerprint=st.booleans(), chunk=st.sampled_from([3, 64, shards.CHUNK]))
def test_patches_equal_indexing_and_cat(
    case: tuple[dict[str, Tensor], list[RowPatch], dict[str, Tensor]], fingerprint: bool, chunk: int
) -> None:
    before, patches, after = case
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CHUNK", chunk)
        source, target = Path(folder, "in"), Path(folder, "out")
        safetensors.torch.save_file(before, source)
        digest = copy_shard(source, target, patches, fingerprint=fingerprint)
        assert digest == (sha256(target) if fingerprint else None)
        assert same(safetensors.torch.load_file(target), after)
        assert (read_header(target).data_start - read_header(source).data_start) % 64 == 0


@pytest.mark.parametrize(
    ("embed", "other"),
    [((32, 64), (5, 3)), ((32, 16), (5, 3)), ((32, 16), (4, 16))],
    ids=["row of cache lines", "rows of cache lines", "longer one last"],
)
def test_tensors_keep_their_alignment(tmp_path: Path, embed: tuple[int, int], other: tuple[int, int]) -> None:
    tensors = {"embed": torch.randn(embed).bfloat16(), "other": torch.randn(other).bfloat16()}
    safetensors.torch.save_file(tensors, tmp_path / "in", {"long": "x" * 21})
    copy_shard(tmp_path / "in", tmp_path / "out", [RowPatch("embed", 32, bytes(2 * embed[1]))])
    old = safetensors.torch.load_file(tmp_path / "in")
    new = safetensors.torch.load_file(tmp_path / "out")
    shifts = [(new[name].data_ptr() - old[name].data_ptr()) % 64 for name in tensors]
    # A row of half a cache line shifts either what follows it or, placed last behind 15 numbers, itself.
    assert shifts == ([0, 32] if embed == (32, 16) and other == (5, 3) else [0, 0])


@pytest.mark.parametrize("length", range(8))
def test_data_keeps_its_alignment_where_the_header_grows(tmp_path: Path, length: int) -> None:
    safetensors.torch.save_file({"a": torch.zeros(9, 16)}, tmp_path / "in", {"x": "x" * length})
    copy_shard(tmp_path / "in", tmp_path / "out", [RowPatch("a", 9, bytes(64))])
    assert (read_header(tmp_path / "out").data_start - read_header(tmp_path / "in").data_start) % 64 == 0


@pytest.mark.parametrize(
    "patch",
    [
        RowPatch("embed", 11, bytes(256)),
        RowPatch("embed", -1, bytes(256)),
        RowPatch("embed", 3, bytes(255)),
        RowPatch("none", 0, bytes(256)),
    ],
)
def test_patch_that_does_not_fit(base: Path, tmp_path: Path, patch: RowPatch) -> None:
    with pytest.raises(ValueError, match=patch.tensor):
        copy_shard(base, tmp_path / "out", [patch])
    assert not (tmp_path / "out").exists()


def test_plain_copies(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base.chmod(0o600)
    umask = os.umask(0o022)
    try:
        assert copy_shard(base, tmp_path / "plain") is None
        assert copy_shard(base, tmp_path / "hashed", fingerprint=True) == sha256(base)
    finally:
        os.umask(umask)
    for name in ("plain", "hashed"):
        assert (tmp_path / name).read_bytes() == base.read_bytes()
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644

    with pytest.raises(RunFailed, match=r"cannot write base\.safetensors: File exists"):
        copy_shard(tmp_path / "plain", base)

    def once(*arguments: int) -> int:
        monkeypatch.setattr(os, "copy_file_range", fail)
        return real(*arguments)

    def fail(*arguments: int) -> int:
        raise OSError(errno.EXDEV, "cross-device")

    real = getattr(os, "copy_file_range", fail)
    monkeypatch.setattr(os, "copy_file_range", once, raising=False)
    monkeypatch.setattr(shards, "CHUNK", 100)
    copy_shard(base, tmp_path / "finished by hand")
    assert (tmp_path / "finished by hand").read_bytes() == base.read_bytes()


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="reflinks are tried on Linux only")
def test_reflink_first(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clone(writer: int, request: int, reader: int) -> int:
        assert request == shards.FICLONE
        return os.write(writer, os.pread(reader, 2**20, 0))

    monkeypatch.setattr(fcntl, "ioctl", clone)
    copy_shard(base, tmp_path / "plain")
    assert copy_shard(base, tmp_path / "hashed", fingerprint=True) == sha256(base)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "hashed").read_bytes() == base.read_bytes()


def test_hard_links(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "snapshot").symlink_to(base.name)
    assert copy_shard(tmp_path / "snapshot", tmp_path / "linked", link=True, fingerprint=True) == sha256(base)
    assert (tmp_path / "linked").samefile(base) and not (tmp_path / "linked").is_symlink()
    copy_shard(base, tmp_path / "patched", [RowPatch("embed", 0, bytes(256))], link=True)
    assert not (tmp_path / "patched").samefile(base)

    def other_disk(*arguments: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    with pytest.raises(BadInput, match=r"base\.safetensors.*different disks.*--link"):
        copy_shard(base, tmp_path / "no", link=True)
    assert not (tmp_path / "no").exists()


class SlowDigest:
    """A fingerprint that takes longer than writing."""

    def update(self, chunk: bytes) -> None:
        time.sleep(0.003)

    def hexdigest(self) -> str:
        return ""


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("fingerprint", [False, True])
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patched: bool, fingerprint: bool
) -> None:
    size = 96 * 2**20
    header = {"a": {"dtype": "F32", "shape": [size // 1024, 256], "data_offsets": [0, size]}}
    source = raw_file(tmp_path / "in", header, b"")
    os.truncate(source, source.stat().st_size + size)
    monkeypatch.setattr(shards, "CHUNK", 2**20)
    monkeypatch.setattr(hashlib, "sha256", SlowDigest)
    if not fingerprint:  # the slower way, where the kernel does not copy by itself
        monkeypatch.setattr(shards, "_copy_in_kernel", lambda reader, writer, piece: piece)
    tracemalloc.start()
    copy_shard(source, tmp_path / "out", [RowPatch("a", 5, b"1" * 1024)] * patched, fingerprint=fingerprint)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20
    (tmp_path / "out").unlink()


def fill(out: Path, job: Callable[[Path], object]) -> str:
    """Run a job in OUT's staging folder that must fill the disk; its one line."""
    with pytest.raises(RunFailed) as caught, Staging(out) as staging:
        job(staging.path)
    assert not list(out.parent.iterdir())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_failing_disk(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(shards, "_reflink", lambda reader, writer: False)  # would write nothing
    for code, message in [(errno.ENOSPC, "disk full"), (errno.EDQUOT, "disk full"), (errno.EIO, "cannot write")]:

        def fail(*arguments: object, code: int = code) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "write", fail)
        monkeypatch.setattr(os, "copy_file_range", fail, raising=False)
        for patches in ([], [RowPatch("embed", 1, bytes(256))]):
            for fingerprint in (False, True):
                line = fill(
                    tmp_path / "disk" / "out",
                    lambda path, patches=patches, fingerprint=fingerprint: copy_shard(
                        base, path / "model-1", patches, fingerprint=fingerprint
                    ),
                )
                assert message in line and "model-1" in line


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("mounting a tiny tmpfs needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk(tmp_path: Path, tiny_disk: Path) -> None:
    source, out = tmp_path / "in", tiny_disk / "out"
    safetensors.torch.save_file({"a": torch.zeros(1000, 1000)}, source)
    patch = [RowPatch("a", 1000, bytes(4000))]
    for patches, fingerprint in ([], False), ([], True), (patch, False), (patch, True):
        line = fill(
            out,
            lambda path, patches=patches, fingerprint=fingerprint: copy_shard(
                source, path / "model-1", patches, fingerprint=fingerprint
            ),
        )
        assert line.startswith("disk full while writing model-1")
        assert re.search(r"needs 4\.0 MB, [0-9.]+ (bytes|kB) free$", line)
    line = fill(out, lambda path: write_tensors(path / "extra", {"a": torch.zeros(1000, 100)}))
    assert line.startswith("disk full while writing extra")


def test_source_cut_while_copying(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pread", lambda *arguments: b"")
    with pytest.raises(RunFailed, match="became shorter"):
        copy_shard(base, tmp_path / "out", fingerprint=True)


def test_encode_row() -> None:
    row = torch.tensor([1.0, -2.5, 3.14159, 65504.0])
    for name, dtype in DTYPES.items():
        assert torch.equal(torch.frombuffer(bytearray(encode_row(row, name)), dtype=dtype), row.to(dtype))
    with pytest.raises(RunFailed, match="F16"):
        encode_row(row * 2, "F16")


def test_index_of_all_shards(base: Path, tmp_path: Path) -> None:
    names = shard_names(2)
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    targets = [tmp_path / name for name in names]
    both = torch.randn(2, 3)
    copy_shard(base, targets[0])
    write_tensors(targets[1], {"lower": both[0], "upper": both.t()[1], "z": torch.arange(3)})  # shared, strided
    loaded = safetensors.torch.load_file(targets[1])
    assert torch.equal(loaded["lower"], both[0]) and torch.equal(loaded["upper"], both[:, 1])
    assert read_header(targets[1]).metadata == {"format": "pt"}
    index = merged_index(targets)
    assert index["weight_map"] == {
        **dict.fromkeys(["bias", "embed", "layer"], names[0]),
        **dict.fromkeys(["lower", "upper", "z"], names[1]),
    }
    assert index["metadata"] == {"total_size": 4 * (640 + 384 + 5) + 12 + 8 + 24}
    copy_shard(base, tmp_path / "again")
    with pytest.raises(BadInput, match=r"occurs in two files: model-00001-of-00002\.safetensors and again"):
        merged_index([*targets, tmp_path / "again"])
