"""CSV dialects: every usual separator is found, said, and never part of a prompt."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.prompts.tables.opening import TextFile
from exporter.prompts.tables.separated import SEPARATORS, read_csv
from tests.reading import error_of, load, texts, write

PROMPTS = ["Tom has 3, Ann 4; how many?", 'Say "yes" | "no"', "two\nlines", "a\ttab", "007", "plain", " blank before"]


def saved(path: Path, separator: str, rows: list[list[str]], **keys: object) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator, **keys).writerows(rows)  # type: ignore[arg-type]
    return str(path)


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("columns", [["id", "prompt"], ["prompt", "n", "answer"], ["", "prompt"]])
def test_each_separator_is_found(tmp_path: Path, separator: str, quoting: int, columns: list[str]) -> None:
    rows = [[text if name == "prompt" else str(row) for name in columns] for row, text in enumerate(PROMPTS)]
    path = saved(tmp_path / "a.csv", separator, [columns, *rows], quoting=quoting)
    assert texts(path) == PROMPTS
    assert read_csv(TextFile(Path(path), "a.csv"))[1] == f"separated by {SEPARATORS[separator]}"


words = st.text(st.sampled_from("ab ,;|\t\"'\n"), max_size=12)


@settings(deadline=None, database=None)
@given(st.sampled_from(sorted(SEPARATORS)), st.lists(words, min_size=2, max_size=5))
def test_quoted_cells_come_back(tmp_path_factory: pytest.TempPathFactory, separator: str, cells: list[str]) -> None:
    rows = [[str(row), text, "end"] for row, text in enumerate(cells)]
    folder = tmp_path_factory.mktemp("csv")
    path = saved(folder / "a.csv", separator, [["id", "prompt", "answer"], *rows], quoting=csv.QUOTE_ALL)
    if any(map(str.strip, cells)):
        assert texts(path) == [text for text in cells if text.strip()]


def test_tabs_in_a_file_named_so(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "a.tsv", "id\tprompt\n0\tone, two\n")) == ["one, two"]


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"', "\ufeffsep=;"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_that_names_the_separator(tmp_path: Path, first: str, end: str) -> None:
    prompts = load(write(tmp_path, "a.csv", end.join([first, "id;prompt", "0;one", "1;two"])))
    assert [(prompt.text, prompt.row) for prompt in prompts] == [("one", 1), ("two", 2)]
    assert "line 3 has 3 fields" in error_of(write(tmp_path, "b.csv", end.join([first, "id;prompt", "0;a;b"])))


def test_one_column_may_hold_any_separator(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "a.csv", 'prompt\n"one, two"\nthree; four\nfive|six\n')) == [
        "one, two",
        "three; four",
        "five|six",
    ]


def test_blanks_after_the_separator(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'id, prompt\n0, "one, two"\n1, three\n')
    assert texts(path) == ["one, two", "three"]
    path = write(tmp_path, "b.csv", 'id, prompt\n0, "one"\n1, "two"\n')
    assert texts(path) == ["one", "two"]
    # Blanks that are part of a text stay.
    assert texts(write(tmp_path, "c.csv", "id,prompt\n0, one\n")) == [" one"]


def test_blank_lines_before_the_header(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "a.csv", "\n\r\nid;prompt\n0;one\n")) == ["one"]


def test_lone_carriage_returns(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "a.csv", "id;prompt\r0;one\r1;two\r")) == ["one", "two"]


def test_long_cells(tmp_path: Path) -> None:
    long = "x" * 300_000
    before = csv.field_size_limit()
    assert texts(write(tmp_path, "a.csv", f"prompt\n{long}\n")) == [long]
    assert texts(write(tmp_path, "b.csv", f'id;prompt\n0;"{long};"\n')) == [f"{long};"]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id;prompt\n0;a;b\n", "line 2 has 3 fields, the header 2, separated by semicolons"),
        ("id\tprompt\n0\ta\tb\n", "separated by tabs"),
        ("a;b,c\n1;2,3\n", "commas and semicolons separate its lines alike"),
        ('id;prompt\n0;"a\n', "line 2 is not valid CSV"),
        ("id;id\n0;a\n", "twice"),
        ('{"prompt": "x"}\n{"prompt": "y"}\n', "holds JSON and not separated values"),
    ],
)
def test_what_is_wrong_names_the_separator(tmp_path: Path, content: str, words: str) -> None:
    assert words in error_of(write(tmp_path, "a.csv", content))


def test_a_named_separator_settles_it(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "a.csv", "sep=;\na;b,c\n1;2,3\n"), column="b,c") == ["2,3"]
