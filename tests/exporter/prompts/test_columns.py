"""Which column holds the prompts: chats before texts, never one of several that differ, and always said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.prompts.sources import Source, load_prompts
from tests.reading import FLAG, error_of, texts, write


def chat(*said: str) -> list[dict[str, str]]:
    """Messages of the user and the assistant in turn."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]


ANSWER = [{"role": "assistant", "content": "a"}]


def jsonl(folder: Path, *rows: dict[str, Any]) -> str:
    return write(folder, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    "row",
    [
        {"id": "a", "conversations": chat("q")},
        {"prompt": chat("q"), "completion": ANSWER, "source": "set"},
        {"prompt": chat("q"), "chosen": ANSWER, "rejected": ANSWER},
        {"prompt": "q", "chosen": ANSWER, "rejected": ANSWER},
        {"prompt": "q", "prompt_id": "7f", "messages": chat("q", "a"), "chosen": chat("q", "a")},
        {"chosen": chat("q", "good"), "rejected": chat("q", "bad"), "lang": "en"},
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"system": "Be brief.", "conversations": chat("q"), "tools": "[]"},
        {"question": "q", "answers": {"text": ["a"], "answer_start": [0]}},
        {"text": "q", "test_list": ["assert f()"], "code": "def f(): ..."},
        {"instruction": "q", "input": "", "output": "a"},
        {"prompt": None, "messages": chat("q"), "text": " "},
        {"prompt": " q ", "question": "q"},
        {"task": "q", "n": 1, "good": True},
    ],
)
def test_the_column_is_found(tmp_path: Path, row: dict[str, Any]) -> None:
    assert [text.strip() for text in texts(jsonl(tmp_path, row))] == ["q"]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "first", "messages": chat("first", "a", "last")}, "messages, prompt"),
        ({"question": "q", "history": chat("earlier", "a")}, "history, question"),
        ({"text": "<user>q<assistant>a", "messages": chat("q", "a")}, "messages, text"),
        ({"chat_a": chat("q"), "chat_b": chat("other")}, "chat_a, chat_b"),
        ({"instruction": "Mend this:", "input": "x = ", "output": "x = 1"}, "instruction, input"),
        ({"instruction": "q", "output": "a", "text": "### Instruction: q ### Response: a"}, "text, instruction"),
        ({"prompt": "p", "question": "q"}, "prompt, question"),
    ],
)
def test_several_columns_are_listed(tmp_path: Path, row: dict[str, Any], columns: str) -> None:
    path = jsonl(tmp_path, row)
    assert f"any of the columns {columns} may hold the prompts; name one with column=" in error_of(path)
    assert len(texts(path, column=columns.split(", ")[0])) == 1


def test_columns_differ_where_one_row_does(tmp_path: Path) -> None:
    same = {"prompt": "q", "messages": chat("q")}
    assert texts(jsonl(tmp_path, same, same)) == ["q", "q"]
    assert "messages, prompt" in error_of(jsonl(tmp_path, same, {**same, "prompt": "other"}))


@pytest.mark.parametrize(
    "row",
    [
        {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Now in prose."]},
        {"id": "a", "conversations": [{"human": "q", "assistant": "a"}]},
        {"id": "a", "history": [["q", "a"]]},
        {"id": "a", "body": {"messages": chat("q")}},
        {"id": "a", "input_ids": [1, 2]},
        {"id": "a", "text": 7},
        {"left": "l", "right": "r"},
    ],
)
def test_a_lone_text_beside_what_may_be_meant_is_not_taken(tmp_path: Path, row: dict[str, Any]) -> None:
    path = jsonl(tmp_path, row)
    assert f"name the column that holds the prompts with column=; there are {', '.join(row)}" in error_of(path)


def test_a_column_of_texts_and_numbers_is_not_passed_over(tmp_path: Path) -> None:
    assert "column=" in error_of(jsonl(tmp_path, {"id": "a", "query": "q"}, {"id": "b", "query": 7}))


def test_a_known_name_is_not_passed_over_for_another(tmp_path: Path) -> None:
    rows = [{"question": "q", "text": "a passage"}, {"question": 7, "text": "a passage"}]
    assert "any of the columns question, text may hold the prompts" in error_of(jsonl(tmp_path, *rows))
    assert "row 2, column 'question' holds a number" in error_of(
        jsonl(tmp_path, *({"question": each["question"]} for each in rows))
    )
    assert "a list of texts" in error_of(jsonl(tmp_path, {"id": "a", "prompt": ["p", "q"]}))


def test_lists_of_texts_in_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, column in (("dialog", [["hello", "hi"]]), ("ids", [[1, 2]]), ("what", [{"a": "b"}])):
        pq.write_table(pa.table({"id": ["a"], name: column}), tmp_path / "a.parquet")
        assert f"there are id, {name}" in error_of(str(tmp_path / "a.parquet"))


def test_columns_that_have_to_be_decoded_are_left_alone(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = {"_type": "Image"}
    features = {"caption": {"dtype": "string", "_type": "Value"}, "image": image}
    features |= {"more": {"feature": image, "_type": "List"}}
    packed = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"caption": pa.string(), "image": packed, "more": pa.list_(packed)})
    nothing = {"bytes": b"no image", "path": None}
    table = pa.table({"caption": ["q"], "image": [nothing], "more": [[nothing]]}, schema)
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(about), tmp_path / "a.parquet")
    assert texts(str(tmp_path / "a.parquet")) == ["q"]


def said(location: str, **keys: Any) -> str:
    heard: list[str] = []
    load_prompts(Source(location, **keys), FLAG, heard.append)
    (line,) = heard
    return line


def test_what_is_read_is_said_in_one_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"id": "a", "messages": chat("q")}, {"id": "b", "messages": []})
    assert said(path) == (
        "--forget a.jsonl: 1 prompt from column messages, the last user message of each chat, "
        "1 row without text left out"
    )
    assert said(path, column="id") == "--forget a.jsonl: 2 prompts from column id"
    assert said(path, template="{id}{messages}").startswith("--forget a.jsonl: 2 prompts from column id and messages")
    assert said(write(tmp_path, "a.txt", "x\ny")).endswith("2 prompts from column text, one prompt a line")
    assert said(write(tmp_path, "a.csv", "id;q\n1;x\n")).endswith("from column q, separated by semicolons")
    assert said(write(tmp_path, "a.json", '{"v": 1, "rows": ["x"]}')).endswith("column text, the list under 'rows'")
    assert "\x1b" not in said(write(tmp_path, "b.jsonl", '{"\\u001b[2J": "x"}'))
