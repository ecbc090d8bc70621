"""Weights of sessions that are gone are gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from exporter.onnx.quantize.run import write_weights

pytestmark = pytest.mark.slow

# Pieces of a size that glibc keeps in its heap once it has freed a larger one; the last one holds the heap's top.
SCRIPT = """
from exporter.onnx.graph import return_freed_memory
import ctypes, sys
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "returned":
    return_freed_memory()
before = resident()
libc.free(libc.malloc(31 << 20))
pieces = [libc.malloc(8 << 20) for _ in range(20)]
for piece in pieces:
    ctypes.memset(piece, 1, 8 << 20)
top = libc.malloc(1 << 19)
for piece in pieces:
    libc.free(piece)
print(resident() - before)
"""


def grown(how: str) -> int:
    """MiB by which a process has grown that has taken and freed 160."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_torchs_weights_are_gone_when_the_graphs_are_quantized(tmp_path: Path) -> None:
    model, sizes = torch.nn.Linear(4, 4), []

    def sized(source: Path, target: Path, kind: str) -> int:
        sizes.extend(each.numel() for each in model.parameters())
        return 1

    with (
        mock.patch("exporter.onnx.quantize.run.write_graph"),
        mock.patch("exporter.onnx.quantize.run.quantize", sized),
    ):
        write_weights(model, "name", "int8", tmp_path / "model_int8.onnx", lambda text: None)
    assert sizes == [0, 0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="is about glibc")
def test_freed_memory_goes_back() -> None:
    assert grown("returned") < 40
    assert grown("kept") > 120
