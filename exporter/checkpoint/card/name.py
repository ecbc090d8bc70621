"""What a model card calls its checkpoint, which is known when that is pushed."""

from __future__ import annotations

import re

CARD = "README.md"
PLACEHOLDER = "THIS_CHECKPOINT"
"""Stands for the name until there is one."""


def named_card(card: str, name: str) -> str:
    """A card of `render_card` that calls the checkpoint `name`, whatever it called it before.

    One without the line that loads the checkpoint is not of that kind, and stays as it is.
    """
    before = re.search(r'^checkpoint = "(.+)"$', card, re.MULTILINE)
    if before is None:
        return card
    card = card.replace(before[0], f'checkpoint = "{name}"')
    return re.sub(rf"(unskill (?:verify|restore) ){re.escape(before[1])}(?![\w/.-])", rf"\g<1>{name}", card)
