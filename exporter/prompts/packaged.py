"""The texts that come with the tool: everyday prompts, system prompts and harmless exchanges, all our own.

Everyday prompts stand for what a deployed model is asked and must still answer. One retain set cannot rank the layers
(against MBPP every layer of SmolLM2 looks perfect, on everyday prompts the last one blocks two thirds), so they are on
the retain side of every export unless `--no-everyday` is given.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from exporter.common.errors import BadInput
from exporter.prompts.sources import Prompt

EVERYDAY = "everyday"
"""Source label of the everyday prompts."""


@dataclass(frozen=True)
class Exchange:
    """One harmless question and its answer, the first turn of a conversation."""

    user: str
    assistant: str

    def messages(self) -> list[dict[str, str]]:
        """The exchange as chat messages."""
        return [{"role": "user", "content": self.user}, {"role": "assistant", "content": self.assistant}]


def everyday_prompts(without: Collection[str] = ()) -> list[Prompt]:
    """The everyday prompts except the kinds in `without`; `row` is the line of the packaged file.

    Raises:
        BadInput: There is no such kind, or no prompt is left.
    """
    records = _records("everyday.jsonl")
    kinds = list(dict.fromkeys(record["kind"] for record in records))
    if unknown := [kind for kind in without if kind not in kinds]:
        raise BadInput(f"--everyday-without: no kind '{unknown[0]}'; there are {', '.join(kinds)}")
    if set(without) >= set(kinds):
        raise BadInput("--everyday-without: leaves no everyday prompts; if that is meant, give --no-everyday")
    return [
        Prompt(record["prompt"], EVERYDAY, row, record["kind"])
        for row, record in enumerate(records, start=1)
        if record["kind"] not in without
    ]


def system_prompts() -> tuple[str, ...]:
    """The packaged system prompts."""
    return tuple(record["prompt"] for record in _records("system_prompts.jsonl"))


def exchanges() -> tuple[Exchange, ...]:
    """The packaged exchanges that a second turn may follow."""
    return tuple(Exchange(**record) for record in _records("exchanges.jsonl"))


def _records(name: str) -> list[dict[str, Any]]:
    # split, not splitlines: a U+2028 inside a prompt does not end its line.
    text = files("exporter.prompts").joinpath("data", name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]
