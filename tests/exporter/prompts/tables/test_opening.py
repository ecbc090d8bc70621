"""Compressed files, folders, Arrow files, and files that are not what their names say."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reading import error_of, load, texts, write


def zst(content: bytes) -> bytes:
    import pyarrow

    return pyarrow.compress(content, codec="zstd", asbytes=True)


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zst,
}
KINDS = {
    ".jsonl": '{"prompt": "one"}\n\n{"prompt": "zwei ä"}\n',
    ".ndjson": '{"prompt": "one"}\n\n{"prompt": "zwei ä"}\n',
    ".json": '\n\n{"v": "1", "data": [{"prompt": "one"},\n {"prompt": "zwei ä"}]}',
    ".csv": "id;prompt\n0;one\n1;zwei ä\n",
    ".tsv": "id\tprompt\n0\tone\n1\tzwei ä\n",
    ".txt": "one\n\nzwei ä\n",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", PACKED)
def test_compressed_text(tmp_path: Path, kind: str, ending: str) -> None:
    content = PACKED[ending](KINDS[kind].encode())
    path = write(tmp_path, f"a{kind}{ending}", content)
    assert texts(path) == ["one", "zwei ä"]
    assert texts(path, limit=1) == ["one"]
    # The content decides, not the name.
    assert texts(write(tmp_path, f"b{kind}", content)) == ["one", "zwei ä"]
    assert texts(write(tmp_path, f"c{kind}{ending}", KINDS[kind])) == ["one", "zwei ä"]


@pytest.mark.parametrize("ending", PACKED)
def test_broken_compressed_files(tmp_path: Path, ending: str) -> None:
    import random

    text = json.dumps({"prompt": random.Random(0).randbytes(60_000).hex()}).encode()
    whole = PACKED[ending](text)
    assert "cannot be read" in error_of(write(tmp_path, f"a.jsonl{ending}", whole[: len(whole) // 2]))
    assert "cannot be read" in error_of(write(tmp_path, f"b.jsonl{ending}", whole[:20] + b"\xff" * 99 + whole[119:]))
    assert "the file is empty" in error_of(write(tmp_path, f"c.jsonl{ending}", PACKED[ending](b"")))
    assert "the file is empty" in error_of(write(tmp_path, f"d.jsonl{ending}", b""))
    assert "no such file" in error_of(f"nowhere.jsonl{ending}")
    assert f"unknown file type '{ending}'" in error_of(write(tmp_path, f"a{ending}", whole))
    assert f"unknown file type '.tar{ending}'" in error_of(write(tmp_path, f"a.tar{ending}", whole))
    assert f"'.parquet{ending}'" in error_of(write(tmp_path, f"a.parquet{ending}", whole))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet", "a.arrow", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04 and so on", "zip archive or a spreadsheet; unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web page"),
        (b"\n<html lang='en'>", "web page"),
    ],
)
def test_content_of_another_kind(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    assert words in error_of(write(tmp_path, name, content))


@pytest.mark.parametrize(
    "content", ['{"prompt": "x"}\n{"prompt": "y"}\n', '["x",\n"y"]', '{\n "prompt": "x"\n}', '["x"]']
)
def test_json_in_a_file_of_lines(tmp_path: Path, content: str) -> None:
    message = error_of(write(tmp_path, "a.txt", content))
    assert "holds JSON and not one prompt a line; name it .json or .jsonl" in message


def test_a_line_of_json_among_others_is_a_prompt(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "a.txt", '{"a": 1} is what?\nand this\n')) == ['{"a": 1} is what?', "and this"]
    assert texts(write(tmp_path, "b.txt", '{"a": 1}\nand this\n')) == ['{"a": 1}', "and this"]
    assert texts(write(tmp_path, "c.txt", "[\n")) == ["["]


def test_lone_carriage_returns_end_lines(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "a.txt", "one\rtwo\rthree\r")) == ["one", "two", "three"]
    assert texts(write(tmp_path, "a.jsonl", '{"q": "x"}\r{"q": "y"}\r')) == ["x", "y"]
    assert texts(write(tmp_path, "b.txt", "one\rstill one\r\ntwo\rand two")) == ["one\rstill one", "two\rand two"]


# --- JSON


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("before", ["", "\n\n", "\ufeff", "\r\n \t\n"])
@pytest.mark.parametrize(
    "content",
    [
        [{"prompt": "one"}, {"prompt": "two"}],
        ["one", "two"],
        {"version": "1", "data": [{"prompt": "one"}, {"prompt": "two"}]},
        {"rows": [{"prompt": "one"}, {"prompt": "two"}], "columns": ["prompt"], "meta": {"a": [1]}},
        {"prompts": ["one", "two"], "count": 2},
        {"train": [{"prompt": "one"}, {"prompt": "two"}], "test": []},
    ],
)
def test_json_of_any_form(tmp_path: Path, content: object, before: str, indent: int | None) -> None:
    path = write(tmp_path, "a.json", before + json.dumps(content, indent=indent))
    assert [(prompt.text, prompt.row) for prompt in load(path)] == [("one", 1), ("two", 2)]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_list_after_blank_lines_whatever_the_name(tmp_path: Path, name: str) -> None:
    assert texts(write(tmp_path, name, '\n\n[\n{"prompt": "one"},\n{"prompt": "two"}]\n')) == ["one", "two"]


def test_an_object_that_is_a_row(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "a.json", '{"prompt": "one", "n": 1}')) == ["one"]
    assert texts(write(tmp_path, "b.json", '{\n"messages": [{"role": "user", "content": "one"}]}')) == ["one"]
    assert texts(write(tmp_path, "c.jsonl", '{"prompt": "one", "data": [{"prompt": "two"}]}')) == ["one"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train": [{"q": "x"}], "test": [{"q": "y"}]}, "lists under train, test"),
        ({"prompt": ["x"], "answer": ["y"]}, "lists under prompt, answer"),
        ({"prompt": {"0": "x"}, "id": {"0": "y"}}, "objects under prompt, id"),
        ({"prompt": {"0": "x"}}, 'orient="records"'),
        ({"data": [{"q": "x"}, 3]}, "there are data"),
        ({"result": {"data": [{"q": "x"}]}}, "objects under result"),
    ],
)
def test_json_that_may_mean_several_things(tmp_path: Path, content: object, words: str) -> None:
    assert words in error_of(write(tmp_path, "a.json", json.dumps(content)))
    assert words in error_of(write(tmp_path, "b.json", json.dumps(content, indent=1)))


def test_nan_is_what_pandas_writes_for_nothing(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "a.jsonl", '{"prompt": "x"}\n{"prompt": NaN}\n')) == ["x"]


# --- folders and Arrow files


def test_arrow_files_and_folders_of_save_to_disk(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(
        [{"id": f"r{row}", "messages": [{"role": "user", "content": str(row)}]} for row in range(4)]
    )
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    message = error_of(str(tmp_path / "one"))
    assert message.endswith("each by itself: data-00000-of-00002.arrow, data-00001-of-00002.arrow")
    files = sorted((tmp_path / "one").glob("*.arrow"))
    assert [text for file in files for text in texts(str(file))] == ["0", "1", "2", "3"]
    assert texts(str(files[0]), limit=1) == ["0"]
    DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "two")
    assert "test/data-00000-of-00001.arrow, train/data-00000-of-00001.arrow" in error_of(str(tmp_path / "two"))


def test_arrow_files_of_both_forms(tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.table({"q": ["a", None, "c"]})
    for name, writer in (("stream.arrow", pa.ipc.new_stream), ("file.arrow", pa.ipc.new_file)):
        with writer(str(tmp_path / name), table.schema) as file:
            file.write_table(table)
        assert [(each.text, each.row) for each in load(str(tmp_path / name))] == [("a", 1), ("c", 3)]
    assert "an Arrow file; name it .arrow" in error_of(write(tmp_path, "a.jsonl", (tmp_path / name).read_bytes()))
    assert "not a readable arrow file" in error_of(write(tmp_path, "b.arrow", b"\xff\xff\xff\xff and nothing"))
    assert "the file is empty" in error_of(write(tmp_path, "c.arrow", b""))


def test_a_folder_of_a_hub_dataset(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in (
        "README.md",
        "dataset_infos.json",
        "data/train-0.parquet",
        "data/train-1.parquet",
        "data/test-0.parquet",
    ):
        (tmp_path / name).write_text("x")
    (tmp_path / "more.jsonl").write_text("x")
    assert error_of(str(tmp_path)).endswith(
        "each by itself: data/test-0.parquet, data/train-0.parquet, data/train-1.parquet and 1 more"
    )
    (tmp_path / "empty").mkdir()
    assert "is a folder; name a file instead: .jsonl" in error_of(str(tmp_path / "empty"))
