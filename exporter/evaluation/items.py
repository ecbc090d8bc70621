"""Items to evaluate on: rows of a source with all the columns that a task needs, sampled by the seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exporter.common.errors import BadInput
from exporter.prompts.sources import Source, open_source


@dataclass(frozen=True)
class Item:
    """One row. `fields`: its columns, by name; `source`: label of its source; `row`: 1-based row there."""

    source: str
    row: int
    fields: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Hex digest of the fields, which identifies the item across runs."""
        text = json.dumps(self.fields, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_items(spec: str, flag: str, required: Sequence[str], optional: Sequence[str] = ()) -> list[Item]:
    """Rows of a source as items, without repetitions. spec: a SOURCE; required, optional: columns.

    Raises BadInput where a required column is missing, or empty in a row.
    """
    source = Source.parse(spec, flag)
    if source.template is not None:
        raise BadInput(f"{flag} {source.label}: template= does not apply here: the task writes its own prompts")
    table, where = open_source(source, flag)
    if missing := [name for name in required if name not in table.columns]:
        raise BadInput(f"{where}: has no column '{missing[0]}'; there are {', '.join(table.columns)}")
    names = [*required, *(name for name in optional if name in table.columns)]
    found: dict[str, Item] = {}
    for number, fields in table.fetch(names):
        for name in required:
            if fields[name] is None or fields[name] == "":
                raise BadInput(f"{where}: row {number}, column '{name}' is empty")
        item = Item(source.label, number, dict(fields))
        found.setdefault(item.sha256, item)
    return list(found.values())


def sample(items: Sequence[Any], limit: int | None, seed: int) -> list[Any]:
    """At most `limit` of the items, drawn by a hash of the seed and each item, in their order.

    items: anything with source, row and sha256, such as `Item` and `Prompt`; limit: None for all.
    """
    if limit is None or len(items) <= limit:
        return list(items)

    def rank(item: Any) -> bytes:
        return hashlib.sha256(f"evaluate|{seed}|{item.source}|{item.row}|{item.sha256}".encode()).digest()

    chosen = {id(item) for item in sorted(items, key=rank)[:limit]}
    return [item for item in items if id(item) in chosen]
