"""Parquet and Arrow files, and what `datasets` reads, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.common.errors import BadInput, first_line
from exporter.prompts.tables.opening import HEAD, check_content
from exporter.prompts.tables.table import Row, Table

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

BATCH = 1024
"""Rows of a parquet file that are read at once."""
STARTS = {".parquet": (b"PAR1",), ".arrow": (b"ARROW1", b"\xff\xff\xff\xff")}
"""The first bytes of such files: an Arrow file, or a stream as `save_to_disk` writes it."""


def read_arrow(path: Path, kind: str, limit: int | None, where: str) -> Table:
    """Read the first `limit` rows of a file. kind: ".parquet" or ".arrow", which it is by name.

    Raises:
        BadInput: The file is empty or broken, or something else.
    """
    import pyarrow
    from datasets import Dataset

    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        raise BadInput(f"{where}: the file is empty")
    if not head.startswith(STARTS[kind]):
        check_content(head, where)
    try:
        if kind == ".parquet":
            content = read_parquet(path, limit)
        else:
            reader = pyarrow.ipc.open_file if head.startswith(b"ARROW1") else pyarrow.ipc.open_stream
            content = reader(pyarrow.memory_map(str(path))).read_all()
        # The fingerprint, which names cached results, would otherwise be a hash of all rows.
        rows = Dataset(content, fingerprint=kind[1:])
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise BadInput(f"{where}: is not a readable {kind[1:]} file ({first_line(error)})") from error
    if not len(rows):
        raise BadInput(f"{where}: the file holds no rows")
    return table_of_dataset(rows, limit)


def read_parquet(path: Path, limit: int | None) -> pyarrow.Table:
    """The first `limit` rows at least, batch by batch: few bytes of a file may be millions of rows."""
    import pyarrow
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        if limit is None:
            return file.read()
        batches, rows = [], 0
        for batch in file.iter_batches(BATCH):
            batches.append(batch)
            rows += batch.num_rows
            if rows >= limit:
                break
        return pyarrow.Table.from_batches(batches, file.schema_arrow)


def table_of_dataset(rows: Dataset, limit: int | None) -> Table:
    # Only the columns that are used are decoded: the others may be images.
    part = rows if limit is None else rows.select(range(min(limit, len(rows))))
    text = [name for name, feature in rows.features.items() if _is_text(feature)]
    nested = [name for name, feature in rows.features.items() if name not in text and _may_be_chat(feature)]

    def fetch(names: Sequence[str]) -> Iterable[Row]:
        return ((number, dict(row)) for number, row in enumerate(part.select_columns(list(names)), start=1))

    return Table(tuple(rows.column_names), tuple(text), tuple(nested), fetch)


def _is_text(feature: Any) -> bool:
    return (getattr(feature, "dtype", None) or "").endswith("string")


def _may_be_chat(feature: Any) -> bool:
    """Whether a feature is a list or object, and nothing in it has to be decoded, as images have."""
    from datasets import ClassLabel, LargeList, List, Value

    plain = (Value, ClassLabel)
    inside = [feature]
    for each in inside:  # which grows
        if isinstance(each, dict):
            inside += each.values()
        elif isinstance(each, (list, tuple)):
            inside += each
        elif isinstance(each, (List, LargeList)):
            inside.append(each.feature)
        elif not isinstance(each, plain) and type(each).__name__ != "Json":  # which newer releases of datasets have
            return False
    return not isinstance(feature, plain)
