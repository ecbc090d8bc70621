"""Files of a base without paths of the user's disk, which a checkpoint must not hold; all else byte for byte."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from exporter.checkpoint.config import PATH_KEYS

# Tokens may look like anything, and chat templates are input of the model.
KEPT_WHOLE = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.tiktoken", "*.jinja")
TEMPLATE_KEYS = ("chat_template", "template")
HUB_ID = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)?")
"""Matches a commit's hash and a plain file name too: what the values of PATH_KEYS may be."""

REST = r"[^\s\"'`<>()\[\]{},;|]*"
HOMES = (r"/(?:home|Users)/\w" + REST, r"/root/" + REST, r"[A-Za-z]:[\\/]+Users[\\/]+\w" + REST)

STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
# Only strings have quotes in JSON, so matches from the first one on never begin inside a string.
ENTRY = re.compile(rf"({STRING})(?:(\s*:\s*)({STRING}))?", re.DOTALL)


def of_base(folder: Path, revision: str | None, name: str, content: bytes) -> tuple[bytes, int]:
    """`without_local_paths` of a file in a base's folder. Files from the Hub, at `revision`, are public already."""
    if revision is not None:
        return content, 0
    home = Path(os.path.expanduser("~"))  # unlike Path.home, also where there is none
    return without_local_paths(name, content, (folder.absolute(), folder.resolve(), home))


def without_local_paths(name: str, content: bytes, places: Sequence[Path]) -> tuple[bytes, int]:
    """The file without local paths, and how many there were; places: local folders outside home folders.

    In JSON, values of PATH_KEYS are blanked unless they look like a Hub id. Everywhere, paths in home folders and in
    `places` are removed. Vocabularies and chat templates stay as they are.
    """
    if any(fnmatch(Path(name).name, pattern) for pattern in KEPT_WHOLE):
        return content, 0
    local = _pattern(places)
    text = content.decode("utf-8", "surrogateescape")
    if name.endswith(".json") and _is_json(text):
        cleaned, count = _json_without(text, local)
    else:
        cleaned, count = local.subn("", text)
    return cleaned.encode("utf-8", "surrogateescape"), count


def _pattern(places: Sequence[Path]) -> re.Pattern[str]:
    """Matches a local path in a text. A place like / or /data would match too much."""
    named = [re.escape(str(place)) + REST for place in places if len(place.parts) > 2]
    return re.compile(rf"(?<![\w.])(?:{'|'.join([*named, *HOMES])})")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _json_without(text: str, local: re.Pattern[str]) -> tuple[str, int]:
    count = 0

    def clean(string: str, of_path: bool = False) -> str:
        nonlocal count
        value: str = json.loads(string, strict=False)
        if of_path and value and not HUB_ID.fullmatch(value):
            count += 1
            return '""'
        cleaned, found = local.subn("", value)
        count += found
        return json.dumps(cleaned) if found else string

    def replace(match: re.Match[str]) -> str:
        first, colon, value = match.groups()
        if value is None:
            return clean(first)
        key: str = json.loads(first, strict=False)
        if key in TEMPLATE_KEYS:
            return match[0]
        return clean(first) + colon + clean(value, key.endswith(PATH_KEYS))

    return ENTRY.sub(replace, text), count
