"""One check: a name, whether it holds, and a sentence about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from safetensors import SafetensorError

from exporter.common.errors import UnskillError, first_line
from exporter.models.loading import UNSOUND

SHOWN = 4
"""Problems that a detail names; of the others it gives the number."""

NOT_AS_WRITTEN = (*UNSOUND, SyntaxError, SafetensorError)
"""What reading a damaged file or loading it raises: a failed check, not a bug. SyntaxError: from damaged code."""


class Wrong(Exception):
    """A check failed, and why."""


class NotMade(Exception):
    """A check could not be made, and why: it counts neither as passed nor as failed."""


@dataclass(frozen=True)
class Check:
    """ok: None where the check could not be made. detail: what was seen, or why not."""

    name: str
    ok: bool | None
    detail: str


def make(name: str, check: Callable[..., str], *arguments: object) -> Check:
    """Make one check. It returns what it saw, or raises Wrong, NotMade or what a damaged file makes it raise."""
    try:
        return Check(name, True, check(*arguments))
    except NotMade as error:
        return Check(name, None, str(error))
    except (Wrong, UnskillError) as error:
        return Check(name, False, str(error))
    except NOT_AS_WRITTEN as error:
        return Check(name, False, f"cannot be used ({type(error).__name__}: {first_line(error)})")


@contextmanager
def needed(what: str) -> Iterator[None]:
    """Raise NotMade, which says `what`, where a file is damaged that a check of its own reports."""
    try:
        yield
    except (Wrong, UnskillError, *NOT_AS_WRITTEN) as error:
        raise NotMade(what) from error


def none_of(problems: Iterable[str]) -> None:
    """Raise Wrong where there are any problems, naming the first ones."""
    found = list(problems)
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise Wrong("; ".join(found[:SHOWN]) + more)
