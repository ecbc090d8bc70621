"""What a model is asked where it writes prompts from a description of a skill, and how its lists are read."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from exporter.prompts.packaged import DATA

FORGET, NEAR_MISS = "forget", "near-miss"
"""The sides of written prompts, as in the files of packaged skills."""
EACH, TOPICS = 5, 12
"""Messages that one request asks for, and most sub-topics of a side."""
ENGLISH_TIMES, LANGUAGE_TIMES = 3, 1
"""Requests of one form in English, and in each other language of a question and of an instruction."""
BEGUN = "1. "
"""How the model's answer is begun for it: a list, without a word before it."""

# A number or a dash before an item; the beginning of "3.5 metres" is none, nor that of "-4 degrees".
MARKER = re.compile(r"^\s*(?:[-*•–](?!\d)|\(?\d{1,3}[.):](?!\d))\s*")
QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "'": "'"}


@dataclass(frozen=True)
class Question:
    """What the model is asked. example: the same about another subject, and how that is answered."""

    text: str
    example: tuple[str, str]

    def alone(self) -> str:
        """Both in one text, for models without turns."""
        asked, answer = self.example
        return f"{asked}\n\n{answer}\n\n{self.text}\n\n"


@dataclass(frozen=True)
class Request:
    """One question to the writing model, and what its answer is to consist of: prompts of this kind."""

    question: Question
    side: str
    form: str
    language: str


@cache
def texts() -> dict[str, Any]:
    """The packaged forms, languages, writers and marks (`data/requests.toml`)."""
    return tomllib.loads(DATA.joinpath("requests.toml").read_text(encoding="utf-8"))


def kind_of(side: str, describe: str, but_not: str | None) -> str:
    """What the messages of a side are."""
    return describe if side == FORGET else but_not or f"what is near {describe}, and is something else"


def topic_question(kind: str) -> Question:
    """Asks for a list of sub-topics of one side."""

    def ask(kind: str, count: int) -> str:
        return (
            f"Kind of message: {kind}. List {count} different subjects of such messages, a few words each and "
            "numbered, and not the messages themselves."
        )

    listed = texts()["topics"]
    return Question(ask(kind, TOPICS), (ask(texts()["kind"], len(listed)), numbered(listed)))


def prompt_requests(side: str, kind: str, topics: Sequence[str]) -> list[Request]:
    """Asks for the prompts of one side: every form in English, questions and instructions in the other languages. Both
    sides are asked for alike, since what differs between them is what a detector learns."""
    found: list[Request] = []

    def ask(form: str, style: str, examples: Sequence[str], language: str) -> None:
        number = len(found)
        topic, writer = topics[number % len(topics)], texts()["writers"][number % len(texts()["writers"])]

        def text(kind: str, topic: str, count: int) -> str:
            return (
                f"Kind of message: {kind}. Subject: {topic}. Write {count} different messages of this kind that "
                f"{writer} sends to a chat assistant. {style} One line each, numbered."
            )

        example = text(texts()["kind"], texts()["subject"], len(examples)), numbered(examples)
        found.append(Request(Question(text(kind, topic, EACH), example), side, form, language))

    for _ in range(ENGLISH_TIMES):
        for form in texts()["form"]:
            ask(form["name"], form["style"], form["examples"], "en")
    for _ in range(LANGUAGE_TIMES):
        for language in texts()["language"]:
            for form in ("question", "instruction"):
                style = next(each["style"] for each in texts()["form"] if each["name"] == form)
                written = f"{style} Write them all in {language['name']}."
                ask(form, written, language[form], language["code"])
    return found


def numbered(items: Sequence[str]) -> str:
    return "\n".join(f"{place}. {text}" for place, text in enumerate(items, 1))


def examples() -> list[str]:
    """Every example prompt."""
    by_form = [text for form in texts()["form"] for text in form["examples"]]
    return by_form + [
        text for each in texts()["language"] for form in ("question", "instruction") for text in each[form]
    ]


def items_of(text: str) -> list[str]:
    """The items of a list that a model wrote, one a line, without numbers, dashes, quotes and bold type."""
    found = []
    for line in text.splitlines():
        item = MARKER.sub("", line.replace("**", "")).strip()
        if len(item) > 1 and QUOTES.get(item[0]) == item[-1] and item[-1] not in item[1:-1]:
            item = item[1:-1].strip()
        item = re.sub(r"\s+//\s+", "\n", item).strip()
        if item:
            found.append(item)
    return found
