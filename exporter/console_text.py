"""Text of others on the user's terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with control and other unprintable characters as escapes, so that a terminal obeys none of them."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
