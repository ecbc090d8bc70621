"""Chats in the forms that data sets have: the prompt is the user's last message, the answer what follows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.prompts.chats import as_chat
from tests.reading import error_of, load, texts, write

TURNS = [("system", "Be brief."), ("user", "first"), ("assistant", "reply"), ("user", "last"), ("assistant", "end")]
NAMED = {
    "openai": {},
    "sharegpt": {"user": "human", "assistant": "gpt"},
    "gemini": {"assistant": "model"},
    "openassistant": {"user": "prompter"},
    "capitals": {"user": "User", "assistant": "ASSISTANT"},
}
KEYS = [("role", "content"), ("from", "value"), ("role", "text"), ("speaker", "text"), ("role", "parts")]


def chat(names: dict[str, str], keys: tuple[str, str]) -> list[dict[str, Any]]:
    role, content = keys
    return [
        {role: names.get(who, who), content: [{"text": said}] if content == "parts" else said} for who, said in TURNS
    ]


def jsonl(folder: Path, *rows: object, name: str = "a.jsonl") -> str:
    return write(folder, name, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("names", NAMED.values(), ids=list(NAMED))
@pytest.mark.parametrize("keys", KEYS, ids=map("-".join, KEYS))
@pytest.mark.parametrize("column", ["messages", "conversations", "conversation", "dialog", "chosen", "anything"])
def test_the_last_user_message_is_the_prompt(
    tmp_path: Path, names: dict[str, str], keys: tuple[str, str], column: str
) -> None:
    path = jsonl(tmp_path, {"id": "a-1", "source": "set", column: chat(names, keys), "score": 3})
    assert texts(path) == ["last"]
    assert load(path, column=column, answer=column)[0].answer == "end"


@pytest.mark.parametrize("keys", KEYS, ids=map("-".join, KEYS))
def test_messages_as_json_text(tmp_path: Path, keys: tuple[str, str]) -> None:
    told = json.dumps(chat({}, keys))
    assert texts(jsonl(tmp_path, {"id": "a", "messages": told}, {"id": "b", "messages": "[]"})) == ["last"]
    quoted = told.replace('"', '""')
    assert texts(write(tmp_path, "a.csv", f'id,text\na,"{quoted}"\n')) == ["last"]


@pytest.mark.parametrize("column", [["role", "content"], ["from", "value"]])
def test_lists_by_key_as_arrow_may_have_them(tmp_path: Path, column: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = dict(zip(column, map(list, zip(*TURNS, strict=True)), strict=True))
    pq.write_table(pa.table({"id": ["a"], "conversation": [lists]}), tmp_path / "a.parquet")
    assert texts(str(tmp_path / "a.parquet")) == ["last"]


def test_chats_in_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # What two sources of unlike keys become in one Arrow type: every key in every message.
    both = [chat({}, ("role", "content")), chat({"user": "human"}, ("from", "value"))]
    pq.write_table(pa.table({"id": ["a", "b"], "n": [[0.5], [1.5]], "messages": both}), tmp_path / "a.parquet")
    assert texts(str(tmp_path / "a.parquet")) == ["last", "last"]


def test_one_message_is_a_chat(tmp_path: Path) -> None:
    assert texts(jsonl(tmp_path, {"id": "a", "message": {"role": "user", "content": "hello"}})) == ["hello"]


def test_chats_without_columns(tmp_path: Path) -> None:
    told = chat({}, ("role", "content"))
    assert texts(jsonl(tmp_path, told, told)) == ["last"] * 2
    assert texts(write(tmp_path, "a.json", json.dumps([told, told]))) == ["last"] * 2
    assert texts(write(tmp_path, "b.json", json.dumps({"data": [told, told]}, indent=1))) == ["last"] * 2


def test_parts_of_a_message(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "in "}, {"type": "image"}, {"text": None}, "parts"]
    for content in (parts, {"content_type": "text", "parts": parts}):
        assert texts(jsonl(tmp_path, {"messages": [{"role": "user", "content": content}]})) == ["in parts"]
    assert "not text" in error_of(jsonl(tmp_path, {"messages": [{"role": "user", "content": {"a": 1}}]}))


def test_turns_that_are_no_answer(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "q"}]
    assert load(jsonl(tmp_path, {"messages": asked}), answer="messages")[0].answer == ""
    calls = [*asked, {"role": "assistant", "content": None}, {"role": "tool", "content": "42"}]
    assert load(jsonl(tmp_path, {"messages": calls}), answer="messages")[0].answer == ""


def test_chats_in_which_the_user_says_nothing(tmp_path: Path) -> None:
    silent = {"id": "a", "messages": [{"role": "assistant", "content": "x"}]}
    assert texts(jsonl(tmp_path, {"messages": [{"role": "user", "content": "q"}]}, silent, {"messages": []})) == ["q"]
    assert "the roles are assistant" in error_of(jsonl(tmp_path, silent))
    assert "no message of the user in any row" in error_of(jsonl(tmp_path, silent), column="messages")
    unknown = {"messages": [{"role": "Kunde", "content": "x"}, {"role": "assistant", "content": "y"}]}
    for rows in ([unknown], [{"messages": [{"role": "user", "content": "q"}]}, unknown]):
        message = error_of(jsonl(tmp_path, *rows))
        assert "kunde" in message and "user, human, prompter" in message
    assert "row 1" in error_of(jsonl(tmp_path, unknown), column="messages")


@pytest.mark.parametrize(
    "told",
    [
        "[{'role': 'user', 'content': 'q'}]",
        "[{'content': 'q', 'role': 'user'}\n {'content': 'a', 'role': 'assistant'}]",
        "array([{'from': 'human', 'value': 'q'}], dtype=object)",
        "{'role': 'user', 'content': \"it's\"}",
        '[{"from": "human", "value": "q"},]',
    ],
)
def test_messages_in_another_spelling_than_json(tmp_path: Path, told: str) -> None:
    path = jsonl(tmp_path, {"n": 1, "messages": told})
    assert "not in JSON" in error_of(path)
    assert "not in JSON" in error_of(path, column="messages")


@pytest.mark.parametrize(
    "text", ["{x | x > 0}", "[1, 2]", '{"a": 1}', "[INST]", '[{"role": 1}]', "{", '{"n": ' + "1" * 5000 + "}"]
)
def test_texts_that_are_no_chats(tmp_path: Path, text: str) -> None:
    assert as_chat(text) is None
    assert texts(jsonl(tmp_path, {"prompt": text})) == [text]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (["first", "second"], "a list of texts, of which nothing says whose they are"),
        ([["q", "a"]], "list"),
        ([{"human": "q", "assistant": "a"}], "role and content"),
        ([{"input": "q", "output": "a"}], "role and content"),
        ([{"role": "user"}], "role and content"),
        ({"a": 1}, "dict"),
    ],
)
def test_what_is_no_chat_is_never_passed_over(tmp_path: Path, cell: object, words: str) -> None:
    path = jsonl(tmp_path, {"id": "a-1", "dialog": cell})
    assert "there are id, dialog (dialog: neither text alone nor chats" in error_of(path)
    assert words in error_of(path, column="dialog")
