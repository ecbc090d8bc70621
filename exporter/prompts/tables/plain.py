"""Lines of text and JSON as rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from exporter.common.errors import BadInput
from exporter.prompts.chats import as_chat
from exporter.prompts.tables.opening import TextFile, is_json, parse_json
from exporter.prompts.tables.table import Row

Rows = tuple[Iterable[Row], str]
"""Rows of a file, and what was found about it; see `Table.how`."""


def read_txt(file: TextFile) -> Rows:
    """One prompt a line. Raises BadInput where the file is JSON."""
    file.check_no_json("one prompt a line")
    return ((number, {"text": line}) for number, line in file.lines()), "one prompt a line"


def read_json_lines(file: TextFile) -> Rows:
    """One object or chat a line; also one list. Raises BadInput for anything else."""
    lines = file.lines()
    first = next(lines, None)
    if first is None:
        return (), ""
    if first[1].lstrip().startswith("["):
        return _whole_or_lines(file, first, lines)
    return _of_lines(file, chain([first], lines)), ""


def read_json(file: TextFile) -> Rows:
    """One list, one object that holds it, or one object or chat a line. Raises BadInput for anything else."""
    lines = file.lines()
    first = next(lines, None)
    return ((), "") if first is None else _whole_or_lines(file, first, lines)


def _whole_or_lines(file: TextFile, first: tuple[int, str], lines: Iterator[tuple[int, str]]) -> Rows:
    second = next(lines, None) if is_json(first[1]) else None
    if second is not None:
        return _of_lines(file, chain([first, second], lines)), ""
    whole = file.json()
    if isinstance(whole, list):
        return _of_list(file, whole, "the list"), ""
    if isinstance(whole, dict):
        return _of_object(file, whole)
    raise BadInput(f"{file.where}: is neither a JSON list nor an object")


def _of_lines(file: TextFile, lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    for number, line in lines:
        value = parse_json(line, f"{file.where}: line {number}")
        row = _as_row(value) if not isinstance(value, str) else None
        if row is None:
            raise BadInput(f"{file.where}: line {number} is not a JSON object; each line must be one, like {{...}}")
        yield number, row


def _of_list(file: TextFile, values: list[Any], where: str) -> Iterator[Row]:
    for number, value in enumerate(values, start=1):
        row = _as_row(value)
        if row is None:
            raise BadInput(f"{file.where}: element {number} of {where} is neither an object nor a string nor a chat")
        yield number, row


def _as_row(value: Any) -> dict[str, Any] | None:
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {"text": value}
    return {"messages": value} if as_chat(value) else None


def _of_object(file: TextFile, whole: dict[str, Any]) -> Rows:
    """Rows of the one list that an object holds; an object without such a list is a row itself."""
    lists = {key: value for key, value in whole.items() if _are_rows(value)}
    objects = [key for key, value in lists.items() if not isinstance(value[0], str)]
    keys = objects or list(lists)
    if len(keys) > 1:
        raise BadInput(
            f"{file.where}: is one object with lists under {', '.join(keys)}; save the list that is meant as a file "
            "of its own, or one object a line"
        )
    if whole and all(isinstance(value, dict) for value in whole.values()):
        raise BadInput(
            f"{file.where}: is one object with objects under {', '.join(whole)}; save one object a row instead "
            '(pandas: orient="records")'
        )
    if not keys:
        return [(1, whole)], ""
    return _of_list(file, lists[keys[0]], f"the list under '{keys[0]}'"), f"the list under '{keys[0]}'"


def _are_rows(value: Any) -> bool:
    """Whether a value is a list of rows: all objects that are no messages, all texts, or all chats."""
    if not isinstance(value, list) or not value or as_chat(value):
        return False
    kinds = (lambda each: isinstance(each, dict), lambda each: isinstance(each, str), as_chat)
    return any(all(map(kind, value)) for kind in kinds)
