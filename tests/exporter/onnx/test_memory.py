"""Weights of sessions that are gone are gone."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Pieces of a size that glibc keeps in its heap once it has freed a larger one; the last one holds the heap's top.
SCRIPT = """
from exporter.onnx.memory import return_freed_memory
import ctypes, sys
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "returned":
    return_freed_memory()
libc.free(libc.malloc(31 << 20))
pieces = [libc.malloc(8 << 20) for _ in range(20)]
for piece in pieces:
    ctypes.memset(piece, 1, 8 << 20)
top = libc.malloc(1 << 19)
for piece in pieces:
    libc.free(piece)
pages = int(open("/proc/self/statm").read().split()[1])
print(pages * 4096 >> 20)
"""


def resident(how: str) -> int:
    """MiB of a process that has freed 160."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="is about glibc")
def test_freed_memory_goes_back() -> None:
    assert resident("returned") < 80
    assert resident("kept") > 160
