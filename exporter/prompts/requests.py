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
class Request:
    """One question to the writing model, and what its answer is to consist of: prompts of this kind."""

    text: str
    side: str
    form: str
    language: str


@cache
def texts() -> dict[str, Any]:
    """The packaged forms, languages, writers and marks (`data/requests.toml`)."""
    return tomllib.loads(DATA.joinpath("requests.toml").read_text(encoding="utf-8"))


def topic_request(side: str, describe: str, but_not: str | None) -> str:
    """Asks for a list of sub-topics of one side."""
    if side == FORGET:
        about = f'"{describe}". List {TOPICS} different everyday situations in which somebody asks for that'
    elif but_not is not None:
        about = f'"{but_not}". List {TOPICS} different examples of that'
    else:
        about = f'"{describe}". List {TOPICS} subjects that are near it or use the same words, and are something else'
    return f"Think of {about}. Each is a few words long, on a line of its own, and numbered. Write nothing else."


def prompt_requests(side: str, describe: str, but_not: str | None, topics: Sequence[str]) -> list[Request]:
    """Asks for the prompts of one side: every form in English, questions and instructions in the other languages. Both
    sides are asked for alike, since what differs between them is what a detector learns."""
    what = describe if side == FORGET else but_not or f"something that has to do with {describe}, and is not that"
    found: list[Request] = []

    def ask(form: str, style: str, examples: Sequence[str], language: str) -> None:
        number = len(found)
        topic, writer = topics[number % len(topics)], texts()["writers"][number % len(texts()["writers"])]
        listed = "\n".join(f"{place}. {text}" for place, text in enumerate(examples, 1))
        text = (
            f"Write {EACH} different messages that {writer} sends to a chat assistant. {style} One line each, "
            f"numbered; write nothing else.\n\nExamples, were they about pet ferrets:\n{listed}\n\nYour messages are "
            f"not about ferrets. What each of them is about or asks for: {what}; for instance {topic}."
        )
        found.append(Request(text, side, form, language))

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
