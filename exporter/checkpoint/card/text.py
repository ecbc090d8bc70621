"""Text of others in a model card: names of skills, files and models may hold anything, and are shown as they are."""

from __future__ import annotations

import re

CARD = "README.md"
PLACEHOLDER = "THIS_CHECKPOINT"
"""Stands for the name until there is one."""

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "`": "&#96;", "\\": "&#92;", "$": "&#36;"}
"""Characters that would begin markup, a cell of a table or a formula, even behind a backslash."""


def plain(text: str) -> str:
    """The text in one line, without what cannot be seen (direction marks and the like)."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)


def markdown(text: str) -> str:
    """The text as Markdown that shows it and does nothing else, within a line, a heading or a cell of a table."""
    shown = "".join(ENTITIES.get(letter, letter) for letter in plain(text))
    # Emphasis, links, images and mentions; an underscore inside a word is none, and names of files have many.
    shown = re.sub(r"([*\[\]~@])", r"\\\1", shown)
    shown = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", shown)
    shown = re.sub(r"(?i)(https?|ftp|mailto|xmpp)(:)", r"\1&#58;", shown)
    shown = re.sub(r"(?i)(www)\.", r"\1&#46;", shown)
    # What would be a heading, a list or a rule at the beginning of a line.
    return re.sub(r"\A(#|[-+=]|\d+(?=[.)]))", lambda match: f"&#{ord(match[0][0])};{match[0][1:]}", shown)


def named_card(card: str, name: str) -> str:
    """A card of `render_card` that calls the checkpoint `name`, whatever it called it before.

    One without the line that loads the checkpoint is not of that kind, and stays as it is.
    """
    before = re.search(r'^checkpoint = "(.+)"$', card, re.MULTILINE)
    if before is None:
        return card
    card = card.replace(before[0], f'checkpoint = "{name}"')
    return re.sub(rf"(unskill (?:verify|restore) ){re.escape(before[1])}(?![\w/.-])", rf"\g<1>{name}", card)
