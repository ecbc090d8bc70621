"""Results item by item as JSON lines, written as they come, so that an interrupted evaluation can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.common.errors import BadInput
from exporter.common.files import write_errors
from exporter.evaluation.items import Item
from exporter.prompts.sources import Prompt

BASE, EDITED = "base", "edited"
"""The role of a model in an evaluation."""
ABOUT = ("item", "source", "row", "sha256")
"""The fields of a line that identify its item; the others are the result."""
Result = dict[str, Any]
"""What a task found for one item."""


class Records:
    """The file of one task on one model: a header line, then one line for each item that is done.

    header: everything that the results depend on. A file with another header raises BadInput: it is not overwritten.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], items: Sequence[Item | Prompt]) -> None:
        self.path, self.items = path, items
        self.results: dict[int, Result] = {}
        first = json.dumps(header, sort_keys=True, ensure_ascii=False) + "\n"
        if path.exists() and not first.encode().startswith(path.read_bytes()):
            self._read(first)
        else:  # none, or a header that was cut off by a kill
            with write_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(first, encoding="utf-8")

    def _read(self, first: str) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a line may have been cut off by a kill
        header, *lines = whole.decode("utf-8", errors="replace").split("\n")[:-1] or [""]
        if header + "\n" != first:
            raise BadInput(
                f"--out: {self.path.name} there holds results of other models, sources or settings: name another "
                "folder, or give --overwrite to start again"
            )
        for number, line in enumerate(lines, start=2):
            try:
                record = json.loads(line)
                self.results[record["item"]] = {name: value for name, value in record.items() if name not in ABOUT}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise BadInput(
                    f"--out: {self.path.name}, line {number} is damaged: repair it, name another folder, or give "
                    "--overwrite to start again"
                ) from error
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))

    def append(self, rows: Sequence[int], results: Sequence[Result]) -> None:
        """Keep the results of a whole batch."""
        lines = []
        for row, result in zip(rows, results, strict=True):
            item = self.items[row]
            about = {"item": row, "source": item.source, "row": item.row, "sha256": item.sha256}
            lines.append(json.dumps(about | result, ensure_ascii=False) + "\n")
            self.results[row] = result
        with write_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())

    def all(self) -> list[Result]:
        """Results in the order of the items. Raises KeyError where one is not done."""
        return [self.results[row] for row in range(len(self.items))]


def read_by_item(path: Path) -> dict[str, Result]:
    """Results of an earlier run by the items' sha256. Raises BadInput where the file was not written by unskill."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        records = [json.loads(line) for line in lines[1:] if line]
        return {record["sha256"]: record for record in records}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"--against: {path.name} is not a file of results that unskill evaluate wrote") from error
