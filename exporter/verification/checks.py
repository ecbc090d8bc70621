"""One check: a name, whether it holds, and a sentence about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from exporter.common.errors import UnskillError, first_line

SHOWN = 4
"""Problems that a detail names; of the others it has the number."""

# What reading a file raises that holds something else than it should: other types, missing keys, other text. Whatever
# is wrong with a file of unknown origin must be found here, and is a failed check, not a bug.
# SyntaxError: of code; RuntimeError: of tensors by torch; ArithmeticError and StrictDataclassError: of sizes by
# transformers' configs.
NOT_AS_WRITTEN = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    SyntaxError,
    RuntimeError,
    ArithmeticError,
    StrictDataclassError,
    SafetensorError,
)


class Wrong(Exception):
    """A check that failed, and why."""


class NotMade(Exception):
    """A check that could not be made, and why: it counts neither as passed nor as failed."""


@dataclass(frozen=True)
class Check:
    """ok: None where the check could not be made. detail: what was seen, or why not."""

    name: str
    ok: bool | None
    detail: str

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "ok": self.ok, "detail": self.detail}


def make(name: str, check: Callable[[], str]) -> Check:
    """Make one check. It returns what it saw, or raises Wrong, NotMade or what a damaged file makes it raise."""
    try:
        return Check(name, True, check())
    except Wrong as error:
        return Check(name, False, str(error))
    except NotMade as error:
        return Check(name, None, str(error))
    except UnskillError as error:
        return Check(name, False, str(error))
    except NOT_AS_WRITTEN as error:
        return Check(name, False, f"cannot be read as what it should be ({type(error).__name__}: {first_line(error)})")


def none_of(problems: Iterable[str]) -> None:
    """Raise Wrong where there are any problems, naming the first ones."""
    found = list(problems)
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise Wrong("; ".join(found[:SHOWN]) + more)


def counted(count: int, what: str) -> str:
    """1 file, 2 files."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
