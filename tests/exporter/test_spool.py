from __future__ import annotations

import errno
import os
from typing import Any

import pytest
import torch

from exporter.errors import RunFailed
from exporter.spool import KeySpool


def test_batches_come_back_as_they_went() -> None:
    batches = [([2, 0], torch.randn(2, 3, 5)), ([1], torch.randn(1, 3, 5))]
    with KeySpool() as spool:
        for (rows, keys), (kept_rows, kept) in zip(batches, spool.keep(iter(batches)), strict=True):
            assert kept_rows == rows and kept is keys
        for _ in range(2):
            again = list(spool.batches())
            assert [rows for rows, _ in again] == [[2, 0], [1]]
            assert all(torch.equal(one, other) for (_, one), (_, other) in zip(again, batches, strict=True))


def test_a_full_disk_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, content: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None: ...

    def full(*args: Any, **kwargs: Any) -> Full:
        return Full()

    monkeypatch.setattr("exporter.spool.tempfile.TemporaryFile", full)
    with KeySpool() as spool, pytest.raises(RunFailed, match=r"No space left on device; free space in .*TMPDIR"):
        list(spool.keep(iter([([0], torch.randn(1, 3, 5))])))
