from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from exporter.methods.key_space.spool import KeySpool

ROOT = Path(__file__).resolve().parents[4]


def test_batches_come_back_as_they_went() -> None:
    batches = [([2, 0], torch.randn(2, 3, 5)), ([1], torch.randn(1, 3, 5))]
    with KeySpool() as spool:
        for (rows, keys), (kept_rows, kept) in zip(batches, spool.keep(iter(batches)), strict=True):
            assert kept_rows == rows and kept is keys
        for _ in range(2):
            again = list(spool.batches())
            assert [rows for rows, _ in again] == [[2, 0], [1]]
            assert all(torch.equal(one, other) for (_, one), (_, other) in zip(again, batches, strict=True))


FULL = """
import resource, torch
from exporter.common.errors import RunFailed
from exporter.methods.key_space.spool import KeySpool
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    with KeySpool() as spool:
        for _ in spool.keep(iter([([0], torch.randn(1, 3, {width}))] * 90)):
            pass
except RunFailed as error:
    print(error)
"""


@pytest.mark.parametrize("width", [500, 5000])
def test_a_file_that_cannot_grow_names_the_folder(width: int) -> None:
    """Batches below and above the size of the file's buffer, in a process whose files may not grow."""
    done = subprocess.run(
        [sys.executable, "-c", FULL.format(width=width)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert re.search(r"temporary file: File too large; free space in .+TMPDIR", done.stdout), done.stdout
    assert not done.stderr
