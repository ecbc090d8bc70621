"""The texts that come with the tool: everyday prompts, and what stands around prompts in a conversation, all our own.

Everyday prompts stand for what a deployed model is asked and must still answer. One retain set cannot rank the layers
(against MBPP every layer of SmolLM2 looks perfect, on everyday prompts the last one blocks two thirds), so they are on
the retain side of every export unless `--no-everyday` is given.

Every file is read once a process. The prompts of packaged skills are in `exporter.prompts.packaged_skills`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from exporter.common.errors import BadInput
from exporter.prompts.sources import Prompt

DATA = files("exporter.prompts").joinpath("data")

EVERYDAY = "everyday"
"""Source label of the everyday prompts."""
EVERYDAY_FILES = (
    "everyday.jsonl",
    "everyday/english.jsonl",
    "everyday/languages.jsonl",
    "everyday/ordinary.jsonl",
    "everyday/wider.jsonl",
)
"""Where the everyday prompts are; their rows go on from file to file. A new file comes last."""
AROUND_FILES = ("system_prompts.jsonl", "exchanges.jsonl")
"""What prompts are formatted with, where formats are mixed."""
TURN_FILES = (
    "turns/prefills.jsonl",
    "turns/insisting.jsonl",
    "turns/after_refusal_harmless.jsonl",
    "turns/after_refusal_questions.jsonl",
    "turns/conversations.jsonl",
    "turns/long_messages.jsonl",
    "turns/system_prompts.jsonl",
    "turns/exchanges.jsonl",
)
"""What prompts are put into beside that, in all kinds of turn."""
RENDERING_FILES = ("renderings.jsonl",)
"""What the user's own prompts are rendered with."""


@dataclass(frozen=True)
class Exchange:
    """One harmless question and its answer, the first turn of a conversation."""

    user: str
    assistant: str

    def messages(self) -> list[dict[str, str]]:
        """The exchange as chat messages."""
        return [{"role": "user", "content": self.user}, {"role": "assistant", "content": self.assistant}]


@dataclass(frozen=True)
class Phrase:
    """Something said around a request, in one language; `kind`: of what sort, such as "thanks"."""

    text: str
    language: str
    kind: str


@dataclass(frozen=True)
class Conversation:
    """Harmless turns before a request: chat messages, the last of them the assistant's."""

    messages: tuple[dict[str, str], ...]
    language: str
    topic: str


@dataclass(frozen=True)
class LongMessage:
    """A long message of one user, in which `{request}` stands once, where the request goes.

    `place`: where that is, at the "start", in the "middle" or at the "end".
    """

    text: str
    language: str
    place: str


def everyday_prompts(without: Collection[str] = (), without_rows: Collection[int] = ()) -> list[Prompt]:
    """The everyday prompts except the kinds in `without` and the rows in `without_rows`.

    `row` counts the prompts through EVERYDAY_FILES.

    Raises:
        BadInput: There is no such kind, or no prompt is left.
    """
    records = [record for name in EVERYDAY_FILES for record in records_of(name)]
    kinds = list(dict.fromkeys(record["kind"] for record in records))
    if unknown := [kind for kind in without if kind not in kinds]:
        raise BadInput(f"--everyday-without: no kind '{unknown[0]}'; there are {', '.join(kinds)}")
    found = [
        Prompt(record["prompt"], EVERYDAY, row, record["kind"], language=record["language"])
        for row, record in enumerate(records, start=1)
        if record["kind"] not in without and row not in without_rows
    ]
    if not found:
        raise BadInput("--everyday-without: leaves no everyday prompts; if that is meant, give --no-everyday")
    return found


def system_prompts() -> tuple[str, ...]:
    """The packaged system prompts."""
    return tuple(record["prompt"] for record in records_of("system_prompts.jsonl"))


def exchanges() -> tuple[Exchange, ...]:
    """The packaged exchanges that a second turn may follow."""
    return tuple(Exchange(**record) for record in records_of("exchanges.jsonl"))


def all_system_prompts() -> tuple[str, ...]:
    """Those and others, in seven languages."""
    return system_prompts() + tuple(record["prompt"] for record in records_of("turns/system_prompts.jsonl"))


def all_exchanges() -> tuple[Exchange, ...]:
    """The packaged exchanges and others, in seven languages."""
    more = records_of("turns/exchanges.jsonl")
    return exchanges() + tuple(Exchange(record["user"], record["assistant"]) for record in more)


def prefills() -> tuple[Phrase, ...]:
    """Beginnings of an answer that somebody may put into the assistant's mouth."""
    return _phrases("prefills")


def insisting() -> tuple[Phrase, ...]:
    """What somebody says who was refused and wants the answer all the same.

    In some of them `{request}` stands once, for the request said again; the others are said without it.
    """
    return _phrases("insisting")


def harmless_after_refusal() -> tuple[Phrase, ...]:
    """Harmless words after a refusal, such as thanks and goodbyes, which ask for nothing."""
    return _phrases("after_refusal_harmless")


def questions_after_refusal() -> tuple[Phrase, ...]:
    """Harmless questions after a refusal, about something else."""
    return _phrases("after_refusal_questions")


def conversations() -> tuple[Conversation, ...]:
    """Harmless conversations of several turns."""
    found = records_of("turns/conversations.jsonl")
    return tuple(Conversation(tuple(each["messages"]), each["language"], each["topic"]) for each in found)


def long_messages() -> tuple[LongMessage, ...]:
    """Long messages with a request in them: `{request}` in the text is to be replaced by it."""
    return tuple(LongMessage(**record) for record in records_of("turns/long_messages.jsonl"))


def greetings() -> tuple[Phrase, ...]:
    """Greetings that a request may follow."""
    return tuple(each for each in _renderings() if each.kind == "greeting")


def instructions() -> tuple[Phrase, ...]:
    """Instructions that may follow any request."""
    return tuple(each for each in _renderings() if each.kind == "instruction")


def packaged_sha256(names: Iterable[str]) -> dict[str, str]:
    """sha256 of packaged files, by their names below `data/`."""
    return {name: hashlib.sha256(DATA.joinpath(name).read_bytes()).hexdigest() for name in names}


@cache
def records_of(name: str) -> tuple[dict[str, Any], ...]:
    """The lines of a packaged .jsonl file."""
    # split, not splitlines: a U+2028 inside a prompt does not end its line.
    text = DATA.joinpath(name).read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.split("\n") if line.strip())


def _phrases(name: str) -> tuple[Phrase, ...]:
    return tuple(Phrase(**record) for record in records_of(f"turns/{name}.jsonl"))


def _renderings() -> tuple[Phrase, ...]:
    return tuple(Phrase(**record) for record in records_of(RENDERING_FILES[0]))
