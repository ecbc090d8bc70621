"""Sources: the SOURCE syntax, and what is made of the columns of a table."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.common.errors import BadInput
from exporter.prompts.sources import Source, fingerprint
from exporter.recipes.templates import read_template
from tests.reading import FLAG, error_of, load, texts, write

ROOT = str(Path(__file__).parents[3])


# --- the SOURCE syntax


def test_parse_reads_every_key() -> None:
    spec = (
        "openai/gsm8k,name=main,split=test,revision=v1,column=question,answer=answer,limit=400,template=Q: {question}"
    )
    assert Source.parse(spec, FLAG) == Source(
        "openai/gsm8k",
        column="question",
        answer="answer",
        split="test",
        name="main",
        revision="v1",
        limit=400,
        template="Q: {question}",
    )


def test_parse_reads_quotes_and_template_files(tmp_path: Path) -> None:
    source = Source.parse('"a, b.jsonl",template=\'Solve, "please": {q}\',column=it\'s', FLAG)
    assert (source.location, source.template, source.column) == ("a, b.jsonl", 'Solve, "please": {q}', "it's")
    assert Source.parse('a.txt,column="say ""x"""', FLAG).column == 'say "x"'
    assert Source.parse(r"a.txt,template=Q: {q}\nA:", FLAG).template == "Q: {q}\nA:"
    file = write(tmp_path, "template.txt", "\ufeffQ: {q},\\n\nA:\n")
    assert Source.parse(f"a.txt,template=@{file}", FLAG).template == "Q: {q},\\n\nA:"


PLAIN_VALUES = st.text(min_size=1).filter(lambda text: text[0] not in "'\"@\\" and "," not in text)
ANY_VALUES = st.text(min_size=1).filter(lambda text: text[0] != "@")


@settings(deadline=None, database=None)
@given(
    location=ANY_VALUES.filter(str.strip),
    column=st.none() | ANY_VALUES,
    split=st.none() | ANY_VALUES,
    limit=st.none() | st.integers(1, 10**9),
    template=st.none() | ANY_VALUES.filter(lambda text: "\\" not in text),
    quote=st.sampled_from("'\""),
)
def test_parse_round_trip_quoted(
    location: str, column: str | None, split: str | None, limit: int | None, template: str | None, quote: str
) -> None:
    def quoted(value: object) -> str:
        return quote + str(value).replace(quote, quote * 2) + quote

    given_keys = {"column": column, "split": split, "limit": limit, "template": template}
    spec = quoted(location) + "".join(f",{key}={quoted(v)}" for key, v in given_keys.items() if v is not None)
    assert Source.parse(spec, FLAG) == Source(location, column=column, split=split, limit=limit, template=template)


@settings(deadline=None, database=None)
@given(location=PLAIN_VALUES.filter(str.strip), column=PLAIN_VALUES)
def test_parse_round_trip_bare(location: str, column: str) -> None:
    assert Source.parse(f"{location},column={column}", FLAG) == Source(location, column=column)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", ["no file or dataset"]),
        (",column=q", ["no file or dataset"]),
        ("a.jsonl,colum=q", ["'colum'", "column", "limit"]),
        ("a.jsonl,location=q", ["'location'"]),
        ("a.jsonl,q", ["'q'"]),
        ("a.jsonl,", ["key=value"]),
        ("a.jsonl,column=", ["column=", "no value"]),
        ("a.jsonl,column=a,column=b", ["column=", "twice"]),
        ("a.jsonl,limit=0", ["limit=0"]),
        ("a.jsonl,limit=-3", ["limit=-3"]),
        ("a.jsonl,limit=many", ["limit=many"]),
        ("a.jsonl,limit=1.5", ["limit=1.5"]),
        ('a.jsonl,column="a', ["quote", "not closed"]),
        ('a.jsonl,column="a"b', ["quote", "not closed"]),
        ("a.jsonl,template=@/no/such/file", ["template=", "/no/such/file"]),
    ],
)
def test_parse_refuses(spec: str, words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        Source.parse(spec, FLAG)
    for word in [FLAG, *words]:
        assert word in str(caught.value)


def test_read_template_escapes_and_files(tmp_path: Path) -> None:
    assert read_template(r"a\nb\\nc\td", FLAG) == "a\nb\\nc\\td"
    with pytest.raises(BadInput, match="is empty"):
        read_template("@" + write(tmp_path, "t.txt", " \n"), FLAG)
    with pytest.raises(BadInput, match="not UTF-8"):
        read_template("@" + write(tmp_path, "u.txt", b"\xff\xfe"), FLAG)


@pytest.mark.parametrize(
    ("location", "label"),
    [
        ("/home/ada/maths.jsonl", "maths.jsonl"),
        ("~ada/x.csv", "x.csv"),
        ("sub/x.txt", "x.txt"),
        ("x.parquet", "x.parquet"),
        ("/data/noend", "noend"),
        ("openai/gsm8k", "openai/gsm8k"),
        ("gsm8k", "gsm8k"),
    ],
)
def test_label_is_never_a_path(location: str, label: str) -> None:
    assert Source(location).label == label


# --- columns, templates, chat messages


def test_default_column(tmp_path: Path) -> None:
    def columns(*names: str) -> str:
        return write(tmp_path, "a.jsonl", json.dumps(dict(zip(names, names, strict=True)) | {"n": 1}))

    assert texts(columns("only")) == ["only"]
    assert texts(columns("answer", "instruction")) == ["instruction"]
    assert "columns prompt, text may hold" in error_of(columns("text", "prompt"))
    message = error_of(columns("left", "right"))
    assert "column=" in message
    assert "left, right, n" in message
    assert "there are left, right, n" in error_of(columns("left", "right"), column="middle")
    assert "there are left, right, n" in error_of(columns("left", "right"), column="left", answer="solution")
    assert load(columns("left", "right"), column="left", answer="right")[0].answer == "right"


def test_chat_messages(tmp_path: Path) -> None:
    def message(role: str, content: object) -> dict[str, object]:
        return {"role": role, "content": content}

    rows = [
        [message("system", "s"), message("user", "first"), message("assistant", "a"), message("user", "last")],
        [message("user", [{"type": "text", "text": "in "}, {"type": "image"}, {"type": "text", "text": "parts"}])],
        [message("assistant", "nobody asked")],
    ]
    path = write(tmp_path, "a.jsonl", "\n".join(json.dumps({"id": "x", "messages": row}) for row in rows))
    assert [(p.text, p.row) for p in load(path)] == [("last", 1), ("in parts", 2)]
    assert texts(path, template="<{messages}>")[0] == "<last>"
    assert "not text" in error_of(write(tmp_path, "b.jsonl", '{"messages": [{"role": "user", "content": 1}]}'))


def test_template_is_literal_and_single_pass(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"a": "{b} {0} %s", "b": "B", "n": 3, "t": true}\n{"a": "", "b": null}')
    assert texts(path, template="{{a}}|{b}|{n}|{t}|{c}") == ["{{b} {0} %s}|B|3|true|{c}"]
    assert "{a}, {b}, {n}, {t}" in error_of(path, template="no column")


def test_a_column_beside_a_template_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"a": "A", "b": "B"}')
    assert error_of(path, template="<{a}>", column="b").endswith(
        "a.jsonl: template= names the columns it is filled with; leave out column="
    )


def test_bad_cells_name_the_row(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"q": "x"}\n{"q": 7}\n')
    assert "row 2" in error_of(path, column="q")
    assert "row 1, column 'q' holds neither" in error_of(write(tmp_path, "b.jsonl", '{"q": {"a": 1}}'), column="q")
    assert "row 1" in error_of(write(tmp_path, "c.jsonl", r'{"q": "\ud800"}'))


def test_fingerprint_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "x")
    assert fingerprint(Source(path)) == hashlib.sha256(b"x").hexdigest()
    with pytest.raises(BadInput, match=r"missing\.txt"):
        fingerprint(Source(str(tmp_path / "missing.txt")))


def test_import_is_light() -> None:
    code = (
        "import sys, exporter.prompts.formats, exporter.prompts.splits\n"
        "print({'torch', 'datasets', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
