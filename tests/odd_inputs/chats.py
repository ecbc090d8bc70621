"""Prompt files that hold chats, in the forms that data sets have."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.odd_inputs.rows import TEXTS, Exported, Place, Refused, Row

ANSWER = "That makes twelve."


def jsonl(rows: Iterable[Any], name: str = "forget.jsonl") -> Callable[[Place], object]:
    """What gives a place such a file as its forget source."""
    return source(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def source(name: str, content: str | bytes, keys: str = "") -> Callable[[Place], object]:
    def make(place: Place) -> None:
        if name != "forget.jsonl":
            (place.folder / "forget.jsonl").unlink()
        place.forget = [str(place.put(name, content)) + keys]

    return make


def separated(rows: Iterable[Sequence[str]], separator: str = ",") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows(rows)
    return text.getvalue()


def each(row: Callable[[str], Any]) -> Callable[[Place], object]:
    return jsonl(map(row, TEXTS))


def asked(text: str, **keys: str) -> list[dict[str, Any]]:
    """A chat of a user and an assistant under other keys and roles."""
    role, content = keys.get("role", "role"), keys.get("content", "content")
    user, assistant = keys.get("user", "user"), keys.get("assistant", "assistant")
    return [{role: user, content: text}, {role: assistant, content: ANSWER}]


def chats(column: str, count: int = len(TEXTS), more: str = "") -> str:
    return f"{count} prompts from column {column}, the last user message of each chat{more}"


def from_value(place: Place) -> None:
    """Lists by key, as Arrow keeps a list of objects."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"from": ["human", "gpt"], "value": [text, ANSWER]} for text in TEXTS]
    path = place.folder / "forget.parquet"
    pq.write_table(pa.table({"id": [str(row) for row in range(len(rows))], "conversations": rows}), path)
    place.forget = [str(path)]


LONGER = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello. How can I help?"}]
SOME = TEXTS[1:]

CHATS = [
    Row("messages with role and content", each(lambda text: {"messages": asked(text)}), Exported(chats("messages"))),
    Row(
        "messages under prompt, beside a text column source",
        each(lambda text: {"prompt": asked(text)[:1], "source": f"set {len(text)}"}),
        Exported(chats("prompt")),
    ),
    Row(
        "ShareGPT: conversations with from, value, human and gpt, beside an id",
        jsonl(
            {"id": str(row), "conversations": asked(text, role="from", content="value", user="human", assistant="gpt")}
            for row, text in enumerate(TEXTS)
        ),
        Exported(chats("conversations")),
    ),
    Row("the same as lists by key in a parquet file", from_value, Exported(chats("conversations"))),
    Row(
        "OpenAssistant: role prompter, key text",
        each(lambda text: {"conversation": asked(text, content="text", user="prompter")}),
        Exported(chats("conversation")),
    ),
    Row(
        "Gemini: contents with parts, role model",
        each(lambda text: {"contents": asked(text, content="parts", assistant="model")}),
        Exported(chats("contents")),
    ),
    Row(
        "roles in capitals: USER, Assistant",
        each(lambda text: {"messages": asked(text, user="USER", assistant="Assistant")}),
        Exported(chats("messages")),
    ),
    Row(
        "content as a list of parts with text",
        each(lambda text: {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]}),
        Exported(chats("messages")),
    ),
    Row(
        "chats of several turns, a system message first",
        each(lambda text: {"messages": [{"role": "system", "content": "Be brief."}, *LONGER, *asked(text)]}),
        Exported(chats("messages")),
    ),
    Row("a chat a line, without an object around it", each(asked), Exported(chats("messages"))),
    Row(
        "messages as JSON text in CSV",
        source("forget.csv", separated([["id", "messages"], *([str(len(t)), json.dumps(asked(t))] for t in TEXTS)])),
        Exported(chats("messages", more=", separated by commas")),
    ),
    Row(
        "messages as Python's text in CSV, as pandas writes them",
        source("forget.csv", separated([["id", "messages"], *([str(len(t)), str(asked(t))] for t in TEXTS)])),
        Refused("column 'messages' holds messages that are not in JSON; save them with json.dumps, or as .jsonl"),
    ),
    Row(
        "DPO pairs: prompt, chosen, rejected as texts",
        each(lambda text: {"prompt": text, "chosen": ANSWER, "rejected": "No."}),
        Exported(f"{len(TEXTS)} prompts from column prompt"),
    ),
    Row(
        "DPO pairs: chosen and rejected as chats with the same question",
        each(lambda text: {"chosen": asked(text), "rejected": [*asked(text)[:1], LONGER[1]]}),
        Exported(chats("chosen")),
    ),
    Row(
        "chosen and rejected as chats with different questions",
        each(lambda text: {"chosen": asked(text), "rejected": asked(text + " Say why.")}),
        Refused("any of the columns chosen, rejected may hold the prompts; name one with column="),
    ),
    Row(
        "prompt as text beside messages that go on",
        each(lambda text: {"prompt": text, "messages": [*asked(text), *LONGER]}),
        Refused("any of the columns messages, prompt may hold the prompts; name one with column="),
    ),
    Row(
        "roles customer and agent",
        each(lambda text: {"id": "a", "messages": asked(text, user="customer", assistant="agent")}),
        Refused(r"no message has the user's role \(user, human, prompter\); the roles are customer, agent"),
    ),
    Row(
        "messages of the assistant alone",
        each(lambda text: {"id": "a", "messages": asked(text)[1:]}),
        Refused("column 'messages' holds chats, but no message has the user's role"),
    ),
    Row(
        "a number as content",
        jsonl([*({"messages": asked(text)} for text in SOME), {"messages": [{"role": "user", "content": 7}]}]),
        Refused(f"row {len(TEXTS)}, column 'messages': the content of the last user message is int, not text"),
    ),
    Row(
        "an empty chat, one of null, one of an image alone, one without a user",
        jsonl(
            [{"messages": []}, {"messages": None}]
            + [{"messages": [{"role": "user", "content": [{"type": "image"}]}]}, {"messages": asked("")[1:]}]
            + [{"messages": asked(text)} for text in SOME]
        ),
        Exported(chats("messages", len(SOME), ", 4 rows without text left out"), SOME),
    ),
    Row(
        "one message a line, with role and content as columns",
        jsonl(message for text in TEXTS for message in asked(text)),
        Refused("name the column that holds the prompts with column=; there are role, content"),
    ),
    Row(
        "dialog: a list of texts, of which nothing says whose they are",
        each(lambda text: {"id": "a", "dialog": [text, ANSWER]}),
        Refused(r"name the column .* there are id, dialog \(dialog: neither text alone nor chats of known form\)"),
    ),
    Row(
        "the same, named by column=",
        lambda place: (
            each(lambda text: {"id": "a", "dialog": [text, ANSWER]})(place),
            place.forget.append(place.forget.pop() + ",column=dialog"),
        ),
        Refused("row 1, column 'dialog' holds neither text nor chat messages .* a list of texts"),
    ),
    Row(
        "turns as objects of human and assistant",
        each(lambda text: {"id": "a", "conversations": [{"human": text, "assistant": ANSWER}]}),
        Refused("name the column that holds the prompts with column=; there are id, conversations"),
    ),
    Row(
        "messages one object deeper, under body",
        each(lambda text: {"id": "a", "body": {"messages": asked(text)}}),
        Refused("name the column that holds the prompts with column=; there are id, body"),
    ),
]
