"""The errors that `unskill` reports in one line each, and their exit codes.

Whatever a user can fix is raised as one of these; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

from typing import Any


class UnskillError(Exception):
    """An error shown as one line, which names the file, field or flag and says what to do about it."""

    exit_code: int = 1


class BadInput(UnskillError):
    """Wrong usage or bad input; running again will not help."""

    exit_code = 2


class RunFailed(UnskillError):
    """The input was valid but the run failed: a full disk, NaN in the weights, no layer that separates the skill."""

    exit_code = 1


class Interrupted(UnskillError):
    """Ctrl-C after part of the work was done; the message says which part, or how to resume."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """The first line of an error's innermost cause: libraries wrap the useful message in generic ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


class Rejected(RunFailed):
    """The result misses a requested limit, so it was not written. `summary`: everything that was measured."""

    def __init__(self, message: str, summary: dict[str, Any]) -> None:
        super().__init__(message)
        self.summary = summary
