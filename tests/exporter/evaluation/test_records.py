"""Results on disk: what is kept at a kill, and what is never mixed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.common.errors import BadInput
from exporter.evaluation.items import Item, read_items, sample
from exporter.evaluation.records import Records, read_by_item

ITEMS = [Item("s.jsonl", row, {"question": f"q{row}"}) for row in range(1, 6)]
HEADER = {"task": "gsm8k", "seed": 0}


def test_results_are_there_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.jsonl"
    Records(path, HEADER, ITEMS).append([3, 1], [{"correct": True}, {"correct": False}])
    again = Records(path, HEADER, ITEMS)
    assert again.results == {3: {"correct": True}, 1: {"correct": False}}
    again.append([0, 2, 4], [{"correct": True}] * 3)
    assert [each["correct"] for each in Records(path, HEADER, ITEMS).all()] == [True, False, True, True, True]
    assert read_by_item(path)[ITEMS[1].sha256]["row"] == 2


@pytest.mark.parametrize("cut", [1, 5, 30, 120])
def test_a_line_cut_off_is_as_good_as_not_there(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "r.jsonl"
    records = Records(path, HEADER, ITEMS)
    records.append([0], [{"correct": True}])
    records.append([1], [{"correct": True}])
    path.write_bytes(path.read_bytes()[:-cut])
    again = Records(path, HEADER, ITEMS)
    assert again.results == {0: {"correct": True}}
    again.append([1], [{"correct": False}])
    lines = path.read_text().splitlines()
    assert [json.loads(line)["item"] for line in lines[1:]] == [0, 1]


def test_a_file_without_a_header_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"mine')
    with pytest.raises(BadInput, match=r"--out: r\.jsonl"):
        Records(path, HEADER, ITEMS)
    assert path.read_text() == '{"mine'


@pytest.mark.parametrize("kept", [0, 3, -1])
def test_a_header_cut_off_is_written_again(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "r.jsonl"
    Records(path, HEADER, ITEMS)
    whole = path.read_text()
    path.write_text(whole[:kept])
    Records(path, HEADER, ITEMS).append([0], [{"correct": True}])
    assert path.read_text().startswith(whole) and Records(path, HEADER, ITEMS).results == {0: {"correct": True}}


def test_results_of_something_else_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Records(path, HEADER, ITEMS).append([0], [{"correct": True}])
    before = path.read_bytes()
    with pytest.raises(BadInput, match="--overwrite"):
        Records(path, HEADER | {"seed": 1}, ITEMS)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [b"{oops", b"[1]", b'{"row": 1}', b"\xff\xfe", b""])
def test_a_damaged_line_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "r.jsonl"
    Records(path, HEADER, ITEMS).append([0, 1, 2], [{"correct": True}] * 3)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], damage, *lines[3:]]))
    before = path.read_bytes()
    with pytest.raises(BadInput, match=r"--out: r\.jsonl, line 3 is damaged: .*--overwrite"):
        Records(path, HEADER, ITEMS)
    assert path.read_bytes() == before


def test_what_is_no_file_of_results_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("{}\n{}\n")
    with pytest.raises(BadInput, match=r"--against: r\.jsonl"):
        read_by_item(path)


def test_items_have_the_columns_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [{"question": "a", "answer": 1, "more": 2}, {"question": "a", "answer": 1}, {"question": "b", "answer": 0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = read_items(str(path), "--choice", ["question", "answer"], ["subject"])
    assert [(item.row, item.fields) for item in items] == [
        (1, {"question": "a", "answer": 1}),
        (3, {"question": "b", "answer": 0}),
    ]
    with pytest.raises(BadInput, match=r"--choice q.jsonl: has no column 'choices'; there are question, answer, more"):
        read_items(str(path), "--choice", ["choices"])
    path.write_text('{"question": ""}\n')
    with pytest.raises(BadInput, match="row 1, column 'question' is empty"):
        read_items(str(path), "--choice", ["question"])
    with pytest.raises(BadInput, match="template="):
        read_items(f"{path},template={{question}}", "--choice", ["question"])


def test_the_sample_depends_on_the_seed_and_keeps_the_order() -> None:
    items = [Item("s", row, {"question": str(row)}) for row in range(50)]
    first, again, other = sample(items, 10, 0), sample(items, 10, 0), sample(items, 10, 1)
    assert first == again != other
    assert [item.row for item in first] == sorted(item.row for item in first)
    assert sample(items[:40], 10, 0) != []
    # Taking rows away takes only these out of the sample.
    assert {item.row for item in sample(items[5:], 50, 0)} == set(range(5, 50))
    assert sample(items, None, 0) == sample(items, 50, 0) == items
