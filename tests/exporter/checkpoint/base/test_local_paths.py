"""Paths of somebody's disk go out of a file, and nothing else changes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.checkpoint.base.local_paths import without_local_paths

PLACES = (Path("/data/models/base"), Path("/"), Path("/srv"))


def cleaned(name: str, text: str) -> tuple[str, int]:
    content, count = without_local_paths(name, text.encode(), PLACES)
    return content.decode(), count


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("saved in /home/ada/models/x, then", "saved in , then"),
        ('"/Users/ada/x"', '""'),
        ("(/root/x)", "()"),
        (r"C:\Users\ada\x and D:/Users/b", " and "),
        ("in /data/models/base-2/x.", "in "),
        ("file:///home/ada/x", "file://"),
    ],
)
def test_text(before: str, after: str) -> None:
    assert cleaned("README.md", before)[0] == after


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/home/ada and/or /srv/x /v1/chat #!/usr/bin/env",
        "~/.cache and ./home/x and a/home/b",
        "mounted at /home or /home/",
    ],
)
def test_text_that_stays(text: str) -> None:
    assert cleaned("README.md", text) == (text, 0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"_name_or_path" :\t"/tmp/x", "a": "/tmp/x"}', '{"_name_or_path" :\t"", "a": "/tmp/x"}'),
        ('{"_name_or_path":"a/b","_commit_hash":"12ab"}', None),
        (
            '{"cache_dir": "./x", "deep": [{"tokenizer_file": "a/b/c"}]}',
            '{"cache_dir": "", "deep": [{"tokenizer_file": ""}]}',
        ),
        ('{"_name_or_path": null, "_dir": {"x_path": "y"}}', None),
        ('{"a": "\\"_name_or_path\\": \\"/tmp/x\\""}', None),
        ('{"/home/ada/x": 1, "b": ["/home/ada/y"]}', '{"": 1, "b": [""]}'),
        ('{"a": "\\/home\\/ada \\u00fc"}', '{"a": " \\u00fc"}'),
        ('{"_path": "/tmp/x"', None),
        (
            '{"chat_template": [{"name": "a", "template": "in /home/user/"}], "b": "/home/ada/x"}',
            '{"chat_template": [{"name": "a", "template": "in /home/user/"}], "b": ""}',
        ),
        ('{"chat_template": "files are in /root/work"}', None),
    ],
)
def test_json(before: str, after: str | None) -> None:
    assert cleaned("config.json", before)[0] == (before if after is None else after)


def test_vocabularies_and_templates_stay() -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "chat_template.jinja"):
        assert cleaned(name, '{"/home/ada": 1, "cache_dir": "/x"}')[1] == 0


values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from(["/home/a/b", '\\"', "/tmp/x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(["x_path", "_dir", '"']), inner, max_size=3)
    ),
    max_leaves=12,
)


def expected(value: Any, of_path: bool = False) -> Any:
    """The same by walking the parsed JSON."""
    if isinstance(value, dict):
        return {key: expected(inner, key in ("x_path", "_dir")) for key, inner in value.items()}
    if isinstance(value, list):
        return [expected(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if of_path and value and not re.fullmatch(r"(?!\.)[\w.-]+(/[\w.-]+)?", value):
        return ""
    return value.replace("/home/a/b", "")


@given(value=values, indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_json_of_any_form(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    content, count = without_local_paths("config.json", text.encode(), ())
    assert json.loads(content) == expected(value)
    assert content == text.encode() or count
    assert without_local_paths("config.json", content, ()) == (content, 0)


@given(content=st.binary(max_size=40))
def test_any_bytes(content: bytes) -> None:
    for name in ("config.json", "README.md"):
        cleaned, count = without_local_paths(name, content, PLACES)
        assert count or cleaned == content
