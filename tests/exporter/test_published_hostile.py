"""Pickles that must not be run: whatever they ask for is refused, and nothing happens."""

from __future__ import annotations

import builtins
import codecs
import copyreg
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter import published
from exporter.errors import BadInput
from exporter.published import read_published
from tests.pickles import DOWN, GATE, cube_file, neurons, refused, write

# --- pickles that do something


class Call:
    """Pickled as a call, which unpickling would make."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def calls(marker: Path) -> dict[str, Call]:
    return {
        "system": Call(os.system, f"touch '{marker}'"),
        "eval": Call(builtins.eval, f"open({str(marker)!r}, 'w')"),
        "getattr": Call(getattr, {}, "keys"),
        "decode": Call(codecs.decode, b"x", "latin1"),
        "load": Call(np.load, str(marker)),
        "fromfile": Call(np.fromfile, str(marker)),
        "memmap": Call(np.memmap, str(marker), "f4", "w+", 0, (9,)),
        "touch": Call(Path.touch, marker),
    }


@pytest.mark.parametrize("asked", calls(Path()))
def test_calls_are_refused(tmp_path: Path, asked: str) -> None:
    marker = tmp_path / "marker"
    call = calls(marker)[asked]
    for content in (
        cube_file(k=call),
        cube_file(mean=call),
        call,
        {call: 1},
        {GATE.format(0): neurons() | {"x": [call]}},
    ):
        line = refused(write(tmp_path, content))
        # Of which module differs from release to release.
        assert line.startswith("FILE: asks for ") and f".{asked}, which no statistics file needs; refused" in line
    for protocol in (0, 1, 2, 3, 5):
        assert "is not a pickle of protocol 4" in refused(write(tmp_path, cube_file(k=call), protocol=protocol))
    assert not marker.exists()
    pickle.loads(pickle.dumps(calls(marker)["system"], 4))  # which shows that the marker works
    assert marker.exists()


def program(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def whole(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


RECONSTRUCT, NDARRAY, DTYPE = (
    name("numpy.core.multiarray", "_reconstruct"),
    name("numpy", "ndarray"),
    name("numpy", "dtype"),
)
EMPTY = RECONSTRUCT + NDARRAY + whole(0) + b"\x85C\x01b\x87R"
F4 = DTYPE + text("f4") + b"\x89\x88\x87R"
ORDERED = F4 + b"(" + whole(3) + text("<") + b"NNN" + whole(-1) * 2 + whole(0) + b"tb"


def array(shape: bytes, dtype: bytes = ORDERED, data: bytes = b"C\x04\0\0\0\0") -> bytes:
    return EMPTY + b"(" + whole(1) + shape + dtype + b"\x89" + data + b"tb"


ONE = whole(1) + b"\x85"


def with_mean(mean: bytes) -> bytes:
    """A sound file of one cube, but for what its mean may be."""
    fields = text("mean") + mean + text("std") + array(ONE) + text("k") + b"G" + struct.pack(">d", 2)
    return program(b"}" + text(DOWN.format(3)) + b"}(" + fields + b"us")


def test_by_hand(tmp_path: Path) -> None:
    content = read_published(write(tmp_path, with_mean(array(ONE))))
    assert {key: values.tolist() for key, values in content.tensors.items()} == {
        "cube.3.mean": [0],
        "cube.3.deviation": [0],
        "cube.3.k": 2,
    }


@pytest.mark.parametrize(
    ("mean", "line"),
    [
        # _reconstruct allocates the shape that it is given.
        (RECONSTRUCT + NDARRAY + whole(2**31 - 1) + b"\x85C\x01b\x87R", "an array is made otherwise than NumPy does"),
        (RECONSTRUCT + NDARRAY + whole(0) + b"\x85C\x01O\x87R", "an array is made otherwise"),
        (RECONSTRUCT + DTYPE + whole(0) + b"\x85C\x01b\x87R", "an array is made otherwise"),
        (RECONSTRUCT + b"(tR", "an array is made otherwise"),
        (NDARRAY + whole(2**31 - 1) + b"\x85R", "not callable"),
        (EMPTY, "mean is an array without data"),
        (array(whole(2**31 - 1) + b"\x85"), "another number of bytes than its shape says"),
        (array(whole(-1) + b"\x85"), "another number of bytes"),
        (array(whole(2) + b"\x85"), "another number of bytes"),
        (array(b"(t"), "not one-dimensional"),
        (array(b"N"), "not one-dimensional"),
        (array(ONE, data=text("abcd")), "not of plain numbers"),
        (array(ONE, data=b"](NNNNe"), "not of plain numbers"),
        (array(ONE, dtype=F4), "not of plain numbers"),
        (array(ONE, dtype=text("f4")), "not of plain numbers"),
        (array(ONE, dtype=DTYPE), "not of plain numbers"),
        (EMPTY + b"Nb", "not of plain numbers"),
        (EMPTY + b"}b", "not of plain numbers"),
        (EMPTY + b"}" + text("data") + text("x") + b"sb", "not of plain numbers"),
        (DTYPE + text("O") + b"\x89\x88\x87R", "not of float32, float64, int32 or int64"),
        (DTYPE + text("f4,O") + b"\x89\x88\x87R", "not of float32"),
        (DTYPE + b"](" + text("a") + text("f4") + b"ta\x89\x88\x87R", "not of float32"),
        (F4 + b"}b", "dtype is not plain numbers"),
        (F4 + b"(" + whole(3) + text("|") + b"NNN" + whole(-1) * 2 + whole(63) + b"tb", "dtype is not plain numbers"),
        # Nothing may be set on the names, which outlive the file.
        (NDARRAY + b"}" + text("x") + whole(1) + b"sb", "sets the state of a name"),
        (RECONSTRUCT + b"(N}" + text("__call__") + NDARRAY + b"stb", "sets the state of a name"),
        (DTYPE + b"}b", "sets the state of a name"),
        (name("numpy", "ndarray.tofile"), "asks for numpy.ndarray.tofile, which"),
        (name("numpy.core.multiarray", "fromfile"), "asks for numpy.core.multiarray.fromfile, which"),
        (name("numpy.core.multiarray", "scalar"), "asks for numpy.core.multiarray.scalar, which"),
        (name("os\n\x1b[31m", "x" * 200), "asks for os??[31m.xxx"),
        (whole(1) + whole(2) + b"\x93", "STACK_GLOBAL requires str"),
        # Instructions that no such file needs.
        (b"cos\nsystem\n", "uses the pickle instruction GLOBAL os system, which no statistics file needs; refused"),
        (b"(ios\nsystem\n", "uses the pickle instruction INST os system"),
        (b"(" + DTYPE + b"o", "uses the pickle instruction OBJ"),
        (DTYPE + b"(t\x81", "uses the pickle instruction NEWOBJ"),
        (DTYPE + b"(t}\x92", "uses the pickle instruction NEWOBJ_EX"),
        (b"P1\n", "uses the pickle instruction PERSID 1"),
        (text("x") + b"Q", "uses the pickle instruction BINPERSID"),
        (b"\x82\x01", "uses the pickle instruction EXT1"),
        (b"\x83\x01\x00", "uses the pickle instruction EXT2"),
        (b"\x84\x01\x00\x00\x00", "uses the pickle instruction EXT4"),
        (b"\x97", "uses the pickle instruction NEXT_BUFFER"),
        (text("x") + b"\x98", "uses the pickle instruction READONLY_BUFFER"),
        (b"\x96" + bytes(8), "uses the pickle instruction BYTEARRAY8"),
        (text("x") + b"r\xff\xff\xff\x7f", "uses the pickle instruction LONG_BINPUT"),
        (text("x") + b"2", "uses the pickle instruction DUP"),
        (b"\x8e" + b"\xff" * 8, "is not a pickle of published statistics ("),
        (b"B\xff\xff\xff\xff", "is not a pickle of published statistics ("),
        (b"\x95" + b"\xff" * 8, "is not a pickle of published statistics ("),
        (b"\x8c\x02\xff\xff", "is not a pickle of published statistics ("),
        # Recursion and what grows by being used again.
        (b"}\x94" + text("x") + b"h\x00s", "uses a container or bytes twice"),
        (b"]\x94h\x00a", "uses a container or bytes twice"),
        (b"]\x94" + b"](h\x00h\x00e\x94", "uses a container or bytes twice"),
        (b"N\x85\x94" + b"\x95" + bytes(8) + b"h\x00h\x00h\x00\x87", "uses a container or bytes twice"),
        (b"N\x85Nb\x94h\x00", "uses a container or bytes twice"),
        (b"N\x85\x94\x94h\x01", "uses a container or bytes twice"),
        (b"B\x01\x00\x00\x00x\x94h\x00", "uses a container or bytes twice"),
        (b"j\xff\xff\xff\x7f", "uses a container or bytes twice"),
        (b"}" + b"N" + b"\x85" * 5000 + b"Ns", "has more pickle instructions than any"),
        (b"}]Ns", "unhashable"),
        (b"]" * 99_999 + b"a" * 99_998, "mean is not a NumPy array"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_programs_are_refused(tmp_path: Path, mean: bytes, line: str) -> None:
    assert line in refused(write(tmp_path, with_mean(mean)))


def test_the_extension_registry_is_not_asked(tmp_path: Path) -> None:
    copyreg.add_extension("os", "system", 240)
    try:
        path = write(tmp_path, cube_file(k=Call(os.system, f"touch '{tmp_path / 'marker'}'")))
        assert "asks for posix.system" in refused(path)
        command = text(f"touch '{tmp_path / 'marker'}'")
        assert "EXT1" in refused(write(tmp_path, with_mean(b"\x82\xf0" + command + b"\x85R")))
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_the_unpickler_alone_refuses_persistent_objects(tmp_path: Path) -> None:
    """The scan refuses them before."""
    with pytest.raises(BadInput, match="an object outside the file"):
        published._Unpickler(program(text("x") + b"Q"), tmp_path).load()
    with pytest.raises(BadInput, match=r"asks for os\.system"):
        published._Unpickler(b"cos\nsystem\n.", tmp_path).load()


def test_out_of_band_buffers(tmp_path: Path) -> None:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(cube_file(), 5, buffer_callback=buffers.append)
    assert buffers and "is not a pickle of protocol 4" in refused(write(tmp_path, data))
    assert "which no statistics file needs" in refused(write(tmp_path, b"\x80\x04" + data[2:]))


# --- anything at all

SMALL = pickle.dumps({GATE.format(2): neurons(1, 2), GATE.format(3): neurons(4)}, 4)
CUBE = pickle.dumps(cube_file(), 4)
PIECES = [
    *(bytes([code]) for code in b"(.NRab]est}u\x85\x87\x88\x89\x93\x94"),
    *(b"h" + bytes([number]) for number in range(4)),
    *(whole(number) for number in (-1, 0, 1, 3)),
    *(text(value) for value in ("mean", "k", "<", "f4", "O", "numpy", "dtype", DOWN.format(0))),
    *(b"C\x01b", b"C\x04\0\0\0\0", RECONSTRUCT, NDARRAY, DTYPE, EMPTY, F4, ORDERED, ONE, array(ONE)),
]


def read_or_refuse(folder: Path, data: bytes) -> None:
    """BadInput of one line, or tensors that are sound."""
    path = write(folder, data)
    try:
        content = read_published(path)
    except BadInput as error:
        assert str(error).isprintable() and str(path) in str(error)
    else:
        assert content.tensors and all(torch.isfinite(values).all() for values in content.tensors.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), header=st.sampled_from([b"", b"\x80\x04", b"\x80\x04}"]))
def test_any_bytes(folder: Path, data: bytes, header: bytes) -> None:
    read_or_refuse(folder, header + data)


@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=25))
def test_any_program(folder: Path, pieces: list[bytes]) -> None:
    read_or_refuse(folder, program(*pieces))
    read_or_refuse(folder, with_mean(b"".join(pieces)))


@settings(max_examples=400, deadline=None)
@given(
    data=st.sampled_from([SMALL, CUBE, with_mean(array(ONE))]),
    changes=st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 2), st.binary(max_size=3)), min_size=1, max_size=4
    ),
)
def test_any_change(folder: Path, data: bytes, changes: list[tuple[int, int, bytes]]) -> None:
    for place, removed, added in changes:
        place %= len(data) or 1
        data = data[:place] + added + data[place + removed :]
    read_or_refuse(folder, data)


def test_every_byte_changed(folder: Path) -> None:
    data = with_mean(array(ONE))
    for place in range(len(data)):
        for value in (0xFF, data[place] ^ 1, ord("R")):
            read_or_refuse(folder, data[:place] + bytes([value]) + data[place + 1 :])
