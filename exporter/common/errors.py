"""The errors that `unskill` reports: one clear line each, and the exit code that goes with them.

Everything that a user can mend is raised as one of these; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

from typing import Any


class UnskillError(Exception):
    """An error to be shown as one line. `str(error)` names the file, field or flag and what to do about it."""

    exit_code: int = 1


class BadInput(UnskillError):
    """Wrong usage or bad input: nothing was started, or nothing can come of it."""

    exit_code = 2


class RunFailed(UnskillError):
    """The input was sound but the run failed: a full disk, NaN in the weights, nothing that separates."""

    exit_code = 1


class Interrupted(UnskillError):
    """Ctrl-C where something was already done; the message says what, or how to go on."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """The first line of an error's innermost cause: libraries wrap the useful sentence in several generic ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


class Rejected(RunFailed):
    """What was made is not what was asked for, so it was not written. `summary`: everything that was measured."""

    def __init__(self, message: str, summary: dict[str, Any]) -> None:
        super().__init__(message)
        self.summary = summary
