"""Memory of a process that holds one copy of a model's weights after another."""

from __future__ import annotations

import ctypes

M_MMAP_THRESHOLD = -3
LARGE = 1 << 20


def return_freed_memory() -> None:
    """From here on memory of a MiB or more goes back to the system as soon as it is freed; of glibc alone.

    It raises the size from which it maps memory apart to that of the largest piece that was freed, up to 32 MiB. The
    weights of a session, or what a trace leaves, are smaller, so they would stay in the heap when they are freed, and
    the next copy would come on top.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
