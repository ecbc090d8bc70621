"""Which column of a table holds the prompts, and what a cell of it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

from exporter.common.errors import BadInput
from exporter.prompts.chats import as_chat, asks, last_answer, last_user_message, looks_like_chat, no_user, roles_of
from exporter.prompts.tables.table import Row, Table

NAMES = ("prompt", "question", "text", "instruction", "input")
"""Columns of text that may hold the prompts wherever they are."""
LOOKED_AT = 1000
"""Rows by which the column is found."""

EMPTY, TEXT, CHAT, OTHER = "empty", "text", "chat", "other"


def find_column(table: Table, where: str) -> str:
    """The column of the prompts where none is named: the only one with chats or of NAMES, or several that say the same
    in every row; else the only column of text, unless another could hold prompts too.

    Raises:
        BadInput: Several columns may be meant, or none; one line that lists them. where: how it names the source.
    """
    names = [*table.nested, *table.text]
    rows = list(islice(table.fetch(names), LOOKED_AT)) if names else []
    cells = {name: [row[name] for _, row in rows] for name in names}
    kinds = {name: _kind(values) for name, values in cells.items()}
    chats = [name for name in names if kinds[name] == CHAT]
    asking = [name for name in chats if any(asks(as_chat(cell) or []) for cell in cells[name])]
    found = asking + [name for name in NAMES if kinds.get(name) in (TEXT, OTHER)]
    if len(found) == 1 or (
        found and all(kinds[name] != OTHER for name in found) and _say_the_same(rows, found, where)
    ):
        return found[0]
    if found:
        raise BadInput(
            f"{where}: any of the columns {', '.join(found)} may hold the prompts; name one with column=, or put "
            "several together with template="
        )
    if chats:
        roles = dict.fromkeys(role for cell in cells[chats[0]] for role in roles_of(as_chat(cell) or []))
        raise BadInput(
            f"{where}: column '{chats[0]}' holds chats, but {no_user(list(roles))}; name another column with column="
        )
    filled = [name for name in names if kinds[name] != EMPTY]
    if len(filled) == 1 and kinds[filled[0]] == TEXT and not any(each in table.columns for each in NAMES):
        return filled[0]
    if names and not filled:
        return next((name for name in NAMES if name in names), names[0])  # which is empty in every row
    unread = [name for name in filled if kinds[name] == OTHER]
    what = f" ({', '.join(unread)}: neither text alone nor chats of known form)" if unread else ""
    raise BadInput(
        f"{where}: name the column that holds the prompts with column=; there are {', '.join(table.columns)}{what}"
    )


def _say_the_same(rows: Sequence[Row], names: Sequence[str], where: str) -> bool:
    def said(name: str) -> list[str]:
        return [prompt_text(row[name], f"{where}: row {number}, column '{name}'").strip() for number, row in rows]

    first = said(names[0])
    return all(said(name) == first for name in names[1:])


def _kind(cells: Sequence[Any]) -> str:
    filled = [cell for cell in cells if not _is_empty(cell)]
    if not filled:
        return EMPTY
    if all(as_chat(cell) for cell in filled):
        return CHAT
    return TEXT if all(isinstance(cell, str) for cell in filled) else OTHER


def _is_empty(cell: Any) -> bool:
    return cell is None or cell in ([], {}) or (isinstance(cell, str) and (not cell.strip() or as_chat(cell) == []))


def prompt_text(cell: Any, where: str) -> str:
    """A cell as the text of a prompt: the text itself, or the last user message of a chat; numbers as in JSON, null as
    "". where: how errors name the cell.

    Raises:
        BadInput: The cell is neither, or a chat in which no role is known to be the user's.
    """
    chat = as_chat(cell)
    return last_user_message(chat, where) if chat is not None else _plain(cell, where)


def answer_text(cell: Any, where: str) -> str:
    """A cell as the text of an answer: as `prompt_text`, but of a chat the last answer."""
    chat = as_chat(cell)
    return last_answer(chat, where) if chat is not None else _plain(cell, where)


def _plain(cell: Any, where: str) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        if looks_like_chat(cell):
            raise BadInput(f"{where} holds messages that are not in JSON; save them with json.dumps, or as .jsonl")
        return cell
    if isinstance(cell, (bool, int, float)):
        return json.dumps(cell)
    kind = type(cell).__name__
    if isinstance(cell, list) and all(isinstance(each, str) for each in cell):
        kind = "a list of texts, of which nothing says whose they are"
    raise BadInput(f"{where} holds neither text nor chat messages with role and content but {kind}")
