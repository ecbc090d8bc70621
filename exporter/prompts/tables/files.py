"""Local files as tables, by the endings of their names.

Parquet, Arrow files and Hub datasets are read by `datasets`. Text files are read here, row by row: `datasets` 5.2
cannot say which line is broken, turns the CSV cells `NA` and `04` into null and 4, fails on a blank line in a JSONL
file whose column mixes types, and takes `[1]` in a file name for a glob pattern.

`datasets`, pyarrow and huggingface_hub are imported where they are used: most commands read no Hub dataset.
"""

from __future__ import annotations

import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from exporter.common.errors import BadInput, first_line
from exporter.prompts.tables.arrow import STARTS, read_arrow
from exporter.prompts.tables.opening import COMPRESSIONS, TextFile
from exporter.prompts.tables.plain import Rows, read_json, read_json_lines, read_txt
from exporter.prompts.tables.separated import read_csv
from exporter.prompts.tables.table import Table, table_of_rows

_READERS: dict[str, Callable[[TextFile], Rows]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_txt,
}
KNOWN = f"{', '.join((*_READERS, *STARTS))}, and text files compressed, as in a.jsonl.gz ({', '.join(COMPRESSIONS)})"
"""The file types that can be read, as errors name them."""
SHOWN = 3
"""Files of a folder that an error names."""
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""Files that `datasets` writes beside the data."""


def type_of(path: Path) -> str | None:
    """The ending that says how a file is read, such as ".jsonl" of "a.jsonl.gz"; None for one that is not known."""
    ending = path.suffix.lower()
    if ending in COMPRESSIONS:
        ending = Path(path.stem).suffix.lower()
        return ending if ending in _READERS else None
    return ending if ending in _READERS or ending in STARTS else None


def looks_like_file(path: Path) -> bool:
    """Whether a name is one of a file, and not of a Hub dataset."""
    return type_of(path) is not None or path.suffix.lower() in COMPRESSIONS


def read_file(path: Path, limit: int | None, where: str) -> Table:
    """Read the first `limit` rows of a local file by its type.

    Args:
        path: An existing file.
        limit: Number of rows from the top; None for all.
        where: How errors name the file, such as "--forget maths.jsonl".

    Raises:
        BadInput: The type is unknown; the file is empty, unreadable, broken, not UTF-8, or not what its name says.
    """
    kind = type_of(path)
    if kind is None:
        ending = "".join(path.suffixes[-2:]) if path.suffix.lower() in COMPRESSIONS else path.suffix
        raise BadInput(f"{where}: unknown file type '{ending}'; known are {KNOWN}")
    try:
        if kind in STARTS:
            return read_arrow(path, kind, limit, where)
        file = TextFile(path, where)
        file.check()
        found, how = _READERS[kind](file)
        rows = list(islice(found, limit))
    except UnicodeDecodeError as error:
        raise BadInput(f"{where}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise BadInput(f"{where}: cannot be read ({reason or first_line(error)})") from error
    if not rows:
        raise BadInput(f"{where}: the file holds no rows")
    return table_of_rows(rows, how, numbers_are_text=kind not in (".csv", ".tsv"))


def folder_message(folder: Path) -> str:
    """What an error says of a folder in place of a file: the files in it that can be named instead."""
    files = sorted(_files(folder))
    if not files:
        return f"is a folder; name a file instead: {KNOWN}"
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return f"is a folder; name the files in it that are meant, each by itself: {', '.join(files[:SHOWN])}{more}"


def _files(folder: Path) -> Iterator[str]:
    """Files with data down to two folders below, as paths from the folder."""
    for path in chain(folder.glob("*"), folder.glob("*/*"), folder.glob("*/*/*")):
        # map() of `datasets` leaves caches in a folder of save_to_disk.
        left = path.name in DESCRIPTIONS or path.name.startswith(("cache-", "."))
        if type_of(path) is not None and not left and os.path.isfile(path):
            yield path.relative_to(folder).as_posix()
