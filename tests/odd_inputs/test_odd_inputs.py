"""Every odd input comes out as its row says; the page of the documentation has the same rows."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.odd_inputs.models import SAID_BY
from tests.odd_inputs.rows import Exported, Refused, Row
from tests.odd_inputs.run import SECONDS, Bases, Came, faults, place_of, refusal
from tests.odd_inputs.table import DOCS, ROWS, markdown

EVERY = 20
"""Of so many exports make test tries one, and those that docs/models.md names; the others are slow."""
ALONE = (
    "flag: --layer nonsense",
    "prompt file: JSON lines, the last one broken off",
    "model: config.json: vocab_size 0",
)
"""Rows that are also run as a user runs them, in a process."""


def params() -> Iterator[ParameterSet]:
    exports = count()
    for kind, rows in ROWS.items():
        for row in rows:
            slow = isinstance(row.out, Exported) and next(exports) % EVERY != 0 and not row.name.startswith(SAID_BY)
            marks = [pytest.mark.slow] if slow or row.fails else []
            if row.fails:
                marks.append(pytest.mark.xfail(reason=row.fails, strict=True))
            yield pytest.param(row, id=f"{kind}: {row.name}", marks=marks)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("row", params())
def test_row(row: Row, bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    assert faults(row, place_of(row, bases, tmp_path)) == []


@pytest.mark.parametrize("name", ALONE)
def test_row_in_a_process_of_its_own(name: str, bases: Bases, tmp_path: Path) -> None:
    (row,) = (each for kind, rows in ROWS.items() for each in rows if f"{kind}: {each.name}" == name)
    assert isinstance(row.out, Refused)
    place = place_of(row, bases, tmp_path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "exporter", "export", "--quiet", *place.arguments], capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert refusal(row.out, Came(done.returncode, done.stdout, done.stderr, seconds, 0, "")) == []
    assert seconds < SECONDS and not Path(place.out).exists()


def test_the_page_has_the_rows() -> None:
    assert DOCS.read_text(encoding="utf-8") == markdown(), "make odd-inputs writes it anew"
