"""Rows of the table of odd inputs: how an input is made, and what must come out, stated before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tiny import ALPHA, FORGET, LAYER, RETAIN, write_prompts

TEXTS = FORGET[:60]
"""The forget prompts of every row that says nothing else."""


@dataclass
class Place:
    """A folder of its own for one row, with a tiny base and both sources, and the command line to come.

    `flags` come first, `more` behind them; of a flag that is given twice the last one counts.
    """

    folder: Path
    model_type: str = "llama"
    forget: list[str] = field(default_factory=list)
    retain: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    more: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model, self.out = str(self.base), str(self.folder / "out")
        self.forget = [str(write_prompts(self.folder / "forget.jsonl", TEXTS))]
        self.retain = [str(write_prompts(self.folder / "retain.jsonl", RETAIN))]
        self.flags = ["--no-everyday", "--no-figures", "--force", "--threads", "1"]
        self.flags += ["--layer", str(LAYER.get(self.model_type, 0)), "--alpha", str(ALPHA)]
        self.flags += ["--prompt-template", "{prompt}"]

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def arguments(self) -> list[str]:
        """The command line, without `unskill export`."""
        sources = [part for spec in self.forget for part in ("--forget", spec)]
        sources += [part for spec in self.retain for part in ("--retain", spec)]
        return [self.model, self.out, *sources, *self.flags, *self.more]

    def put(self, name: str, content: str | bytes) -> Path:
        """A file of this name in the folder."""
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def drop(self, *names: str) -> None:
        """Leave out flags with their values."""
        for name in names:
            at = self.flags.index(name)
            del self.flags[at : at + (1 if name.startswith("--no-") or name == "--force" else 2)]


@dataclass(frozen=True)
class Refused:
    """Exit 2 in one line that holds this pattern."""

    said: str

    def __str__(self) -> str:
        return f"exit 2: {plain(self.said)}"


@dataclass(frozen=True)
class Exported:
    """Exit 0, and a checkpoint that verifies and blocks forget prompts.

    said: a pattern in what is printed; texts: the forget prompts that were read, in any order; summary: values in the
    JSON on stdout; like_base: whether what is not refused is answered as by the base, bit by bit.
    """

    said: str = ""
    texts: Sequence[str] | None = tuple(TEXTS)
    summary: dict[str, Any] = field(default_factory=dict)
    like_base: bool = True

    def __str__(self) -> str:
        parts = [plain(self.said)] if self.said else []
        parts += [f"{key}: {json.dumps(value)}" for key, value in self.summary.items()]
        return ": ".join(["exported and verified", *([", ".join(parts)] if parts else [])])


@dataclass(frozen=True)
class Row:
    """One odd input. make: gives a place to it; model: of `tiny_model`; fails: why another thing comes out, if so."""

    name: str
    make: Callable[[Place], object]
    out: Refused | Exported
    model: dict[str, Any] = field(default_factory=dict)
    fails: str = ""


def plain(pattern: str) -> str:
    """A pattern as people read it: texts in quotes, three dots for anything between."""
    spaced = re.sub(r"(?<!\\)\.\*", " ... ", pattern).replace("  ", " ").strip()
    return re.sub(r"\\(.)", r"\1", '"' + re.sub(r"(?<!\\)\|", '" or "', spaced) + '"')
