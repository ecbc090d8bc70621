"""Key vectors on disk: those of the fit part are needed twice, and are too large for memory in a large model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch

from exporter.common.errors import RunFailed
from exporter.models.batches import Batch


class KeySpool:
    """Batches in an unnamed temporary file, read back in order; deleted when closed.

    A query takes 4 * layers * d_ff bytes: 184 kB for SmolLM2-135M, 1.8 MB for an 8 B model. Not a memory map, because
    writing to one on a full disk kills the process.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._batches: list[tuple[list[int], torch.Size]] = []

    def __enter__(self) -> KeySpool:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # on a full disk, closing tries again to write the rest
            self._file.close()

    def keep(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass the batches on, and keep them. Raises RunFailed if the disk is full."""
        for rows, keys in batches:
            try:
                self._file.write(keys.numpy().tobytes())
                self._file.flush()
            except OSError as error:
                raise RunFailed(
                    f"key vectors in a temporary file: {error.strerror}; free space in {tempfile.gettempdir()} or "
                    "set the environment variable TMPDIR to another folder"
                ) from error
            self._batches.append((rows, keys.shape))
            yield rows, keys

    def layer(self, layer: int) -> torch.Tensor:
        """The keys of one of the layers kept, by its place among them: (n, d_ff) float32, in the order of the rows."""
        sizes = [len(rows) for rows, _ in self._batches]
        found = torch.empty(sum(sizes), self._batches[0][1][-1])
        start = 0
        for rows, shape in self._batches:
            kept = np.memmap(self._file, np.float32, "r", offset=start, shape=tuple(shape))
            found[rows] = torch.from_numpy(kept[:, layer].copy())
            start += 4 * shape.numel()
        return found

    def batches(self) -> Iterator[Batch]:
        self._file.seek(0)
        for rows, shape in self._batches:
            content = bytearray(self._file.read(4 * shape.numel()))
            yield rows, torch.frombuffer(content, dtype=torch.float32).view(shape)
