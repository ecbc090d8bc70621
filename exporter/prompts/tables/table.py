"""A table: what every kind of file and dataset is read as."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Row = tuple[int, dict[str, Any]]
"""A 1-based row number and the row's values by column."""


@dataclass(frozen=True)
class Table:
    """Rows of one file or dataset split.

    Attributes:
        columns: Every column, in the order of the file.
        text: The columns that hold text alone.
        nested: The columns that may hold chats: lists, objects, or text in some rows only.
        fetch: Yields (row number, values) of the named columns. Row numbers are 1-based: lines of a .txt or .jsonl
            file, elements of a .json list, data rows of everything else.
        how: What was found about the file on the way, such as "separated by tabs"; "" for nothing.
    """

    columns: tuple[str, ...]
    text: tuple[str, ...]
    nested: tuple[str, ...]
    fetch: Callable[[Sequence[str]], Iterable[Row]]
    how: str = ""


def table_of_rows(rows: Sequence[Row], how: str, *, numbers_are_text: bool) -> Table:
    """A table of rows in memory. numbers_are_text: False where every cell is text, so that numbers look like it."""
    # Rows of a JSONL file need not have the same fields: the columns are those of all rows together.
    columns = tuple(dict.fromkeys(name for _, row in rows for name in row))
    text, nested = [], []
    for column in columns:
        values = [row[column] for _, row in rows if row.get(column) is not None]
        if values and all(isinstance(value, str) for value in values):
            filled = [value for value in values if value]
            if numbers_are_text or not filled or not all(map(_is_number, filled)):
                text.append(column)
        elif any(isinstance(value, (str, list, dict)) for value in values):
            nested.append(column)

    def fetch(names: Sequence[str]) -> Iterable[Row]:
        return ((number, {name: row.get(name) for name in names}) for number, row in rows)

    return Table(columns, tuple(text), tuple(nested), fetch, how)


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", ""))
    except ValueError:
        return False
    return True
