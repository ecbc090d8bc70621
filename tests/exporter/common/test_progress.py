"""Progress over a whole run."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from unittest import mock

import pytest
from rich.console import Console

from exporter.common import progress as module
from exporter.common.progress import Progress, duration


def plain() -> Progress:
    """Progress into a pipe."""
    return Progress(quiet=False, console=Console(file=io.StringIO(), width=200))


def lines(progress: Progress) -> list[str]:
    shown = progress.console.file
    assert isinstance(shown, io.StringIO)
    return shown.getvalue().splitlines()


@pytest.fixture
def clock() -> Iterator[list[float]]:
    """Seconds on the clock, which stands still."""
    now = [100.0]
    with mock.patch.object(module.time, "monotonic", lambda: now[0]):
        yield now


def test_a_line_for_each_stage_that_ended(clock: list[float]) -> None:
    progress = plain()
    with progress, progress.stage("fit part", 30, "3 prompts"):
        clock[0] += 65
    assert lines(progress) == ["fit part, 3 prompts: 1:05"]


def test_the_time_left_follows_from_the_work_that_is_expected(clock: list[float]) -> None:
    progress = plain()
    progress.expect([("one", 100), ("two", 290), ("three", 10)])
    with progress.stage("one", 100) as advance:
        clock[0] += 20
        advance(50)
        assert progress.share == pytest.approx(50 / 400)
        assert progress.times() == "0:20, about 2:20 left"
        advance(50)
    # It is more than was expected.
    with progress.stage("two", 390):
        assert progress.share == pytest.approx(100 / 500)
    assert lines(progress)[0] == "400 tokens go through the model in all, 0:20, about 2:20 left"


def test_nothing_is_told_of_a_time_that_nobody_knows(clock: list[float]) -> None:
    progress = plain()
    with progress.stage("one", 100) as advance:
        clock[0] += 20
        advance(50)
        assert progress.times() == "0:20"


def test_a_line_now_and_then_though_nothing_moves() -> None:
    progress = plain()
    with mock.patch.object(module, "EVERY", 0.05), progress.stage("slow", 10) as advance:
        advance(5)
        deadline = time.monotonic() + 5
        while len(lines(progress)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert re.fullmatch(r"slow: 50%, 0:0\d", lines(progress)[0])


def test_a_terminal_has_one_bar_and_a_line_for_each_stage() -> None:
    shown = io.StringIO()
    with Progress(quiet=False, console=Console(file=shown, force_terminal=True, width=120)) as progress:
        progress.expect([("one", 1), ("two", 3)])
        for name, work in (("one", 1), ("two", 3)):
            with progress.stage(name, work) as advance:
                advance(work)
    text = shown.getvalue()
    assert "one: 0:00" in text and "two: 0:00" in text and "100%" in text


def test_quiet_is_quiet_and_an_error_passes() -> None:
    progress = Progress(console=Console(file=io.StringIO()))
    with pytest.raises(ValueError, match="no"), progress, progress.stage("one", 1):
        raise ValueError("no")
    assert lines(progress) == []


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3723, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
