"""Untrusted text on the user's terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

Notify = Callable[[str], None]

# Bidirectional embeddings, overrides and isolates, which can make text read as something else.
DIRECTIONS = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def printable(text: str) -> str:
    """A name or a line with control and other unprintable characters escaped, so that a terminal ignores them."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def literal(text: str) -> str:
    """A text of several lines, in any script, with characters that a terminal would obey escaped, as \\x1b."""
    return "".join(
        character if character in "\n\t" or not obeyed(character) else character.encode("unicode_escape").decode()
        for character in text
    )


def obeyed(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in DIRECTIONS


def counted(count: int, what: str) -> str:
    """1 file, 2 files."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def unheard(text: str) -> None:
    """A `Notify` that drops what it is told."""
