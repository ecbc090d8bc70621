"""Files and Hub datasets as tables of rows, from which `sources` picks its prompts.

Parquet files and Hub datasets are read by `datasets`. Text files (.txt, .jsonl, .json, .csv) are read here, row by
row: `datasets` 5.2 cannot say which line is broken, turns the CSV cells `NA` and `04` into null and 4, fails on a
blank line in a JSONL file whose column mixes types, and takes `[1]` in a file name for a glob pattern.

`datasets`, pyarrow and huggingface_hub are imported where they are used: most commands read no Hub dataset.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.common.errors import BadInput, first_line

if TYPE_CHECKING:
    from datasets import Dataset

Row = tuple[int, dict[str, Any]]
"""A 1-based row number and the row's values by column."""


@dataclass(frozen=True)
class Table:
    """Rows of one file or dataset split.

    Attributes:
        columns: Every column, in the order of the file.
        text: The columns that hold text.
        fetch: Yields (row number, values) of the named columns. Row numbers are 1-based: lines of a .txt or .jsonl
            file, elements of a .json list, data rows of everything else.
    """

    columns: tuple[str, ...]
    text: tuple[str, ...]
    fetch: Callable[[Sequence[str]], Iterable[Row]]


def read_file(path: Path, limit: int | None, where: str) -> Table:
    """Read the first `limit` rows of a local file by its suffix.

    Args:
        path: An existing file whose suffix is in `SUFFIXES`.
        limit: Number of rows from the top; None for all.
        where: How errors name the file, such as "--forget maths.jsonl".

    Raises:
        BadInput: The file is empty, unreadable, broken or not UTF-8.
    """
    try:
        if path.stat().st_size == 0:
            raise BadInput(f"{where}: the file is empty")
        if path.suffix.lower() == ".parquet":
            return _read_parquet(path, limit, where)
        rows = list(islice(_READERS[path.suffix.lower()](path, where), limit))
    except UnicodeDecodeError as error:
        raise BadInput(f"{where}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise BadInput(f"{where}: cannot be read ({error.strerror or first_line(error)})") from error
    if not rows:
        raise BadInput(f"{where}: the file holds no rows")
    return _table(rows, numbers_are_text=path.suffix.lower() != ".csv")


def _table(rows: list[Row], *, numbers_are_text: bool) -> Table:
    # Rows of a JSONL file need not have the same fields: the columns are those of all rows together.
    columns = tuple(dict.fromkeys(name for _, row in rows for name in row))

    def holds_text(column: str) -> bool:
        values = [row[column] for _, row in rows if row.get(column) is not None]
        if not values or not all(isinstance(value, str) for value in values):
            return False
        filled = [value for value in values if value]
        return numbers_are_text or not filled or not all(map(_is_number, filled))

    def fetch(names: Sequence[str]) -> Iterable[Row]:
        return ((number, {name: row.get(name) for name in names}) for number, row in rows)

    return Table(columns, tuple(filter(holds_text, columns)), fetch)


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", ""))
    except ValueError:
        return False
    return True


def _lines(path: Path, where: str) -> Iterator[tuple[int, str]]:
    """(line number, line without its end) of every line that is not blank; a UTF-8 byte order mark is dropped."""
    with path.open("rb") as file:
        # Bytes end lines at \n only, so that U+2028 and the like stay inside a prompt.
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise BadInput(
                    f"{where}: line {number} is not UTF-8 text ({error.reason}); save it as UTF-8"
                ) from error
            if text.strip():
                yield number, text.removesuffix("\n").removesuffix("\r")


def _read_txt(path: Path, where: str) -> Iterator[Row]:
    return ((number, {"text": line}) for number, line in _lines(path, where))


def _read_json(path: Path, where: str) -> Iterator[Row]:
    """One object a line, or one list of objects or of strings."""
    for number, line in _lines(path, where):
        if number == 1 and line.lstrip().startswith("["):
            yield from _read_json_list(path, where)
            return
        value = _parse_json(line, f"{where}: line {number}")
        if not isinstance(value, dict):
            raise BadInput(f"{where}: line {number} is not a JSON object; each line must be one, like {{...}}")
        yield number, value


def _read_json_list(path: Path, where: str) -> Iterator[Row]:
    for number, value in enumerate(_parse_json(path.read_text(encoding="utf-8-sig"), where), start=1):
        if isinstance(value, str):
            value = {"text": value}
        if not isinstance(value, dict):
            raise BadInput(f"{where}: element {number} of the list is neither an object nor a string")
        yield number, value


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise BadInput(f"{where} is not valid JSON ({error.msg}, {at})") from error
    except RecursionError as error:
        raise BadInput(f"{where} is nested too deeply") from error


def _read_csv(path: Path, where: str) -> Iterator[Row]:
    """Comma-separated values under a header line. Every cell is text: a prompt "NA" or "007" stays what it is."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        # strict: an unclosed quote is an error, not one prompt that swallows the rest of the file.
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader)
            if len(set(header)) < len(header):
                raise BadInput(f"{where}: the header names a column twice ({', '.join(header)})")
            for number, cells in enumerate(reader, start=1):
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise BadInput(
                        f"{where}: line {reader.line_num} has {len(cells)} fields, the header {len(header)}; "
                        "put cells that hold a comma in double quotes"
                    )
                yield number, dict(zip(header, cells, strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            raise BadInput(f"{where}: line {reader.line_num} is not valid CSV ({error})") from error


_READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".txt": _read_txt,
}
SUFFIXES = (*_READERS, ".parquet")
"""The file types that can be read."""


def _read_parquet(path: Path, limit: int | None, where: str) -> Table:
    import pyarrow.parquet
    from datasets import Dataset

    try:
        # The fingerprint, which names cached results, would otherwise be a hash of all rows.
        rows = Dataset(pyarrow.parquet.ParquetFile(path).read(), fingerprint="parquet")
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise BadInput(f"{where}: is not a readable parquet file ({first_line(error)})") from error
    if not len(rows):
        raise BadInput(f"{where}: the file holds no rows")
    return _table_of_dataset(rows, limit)


def read_hub(
    dataset_id: str, *, name: str | None, split: str | None, revision: str | None, limit: int | None, where: str
) -> Table:
    """Read the first `limit` rows of one split of a Hub dataset, through the usual cache of `datasets`.

    Without `split`, "train" is taken, or the only split.

    Raises:
        BadInput: Unknown dataset, configuration, revision or split; the Hub cannot be reached.
    """
    # The commit, not the branch: what is read is what the fingerprint says, whatever is pushed meanwhile.
    commit, folder = find_dataset(dataset_id, revision, where)
    import datasets
    from datasets.exceptions import DatasetsError
    from datasets.utils import logging

    bars, level = datasets.are_progress_bars_disabled(), logging.get_verbosity()
    datasets.disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)  # the error is reported below, in one line
    try:
        if folder is not None:
            loaded = datasets.load_dataset(str(folder), name, split=split)
        else:
            loaded = datasets.load_dataset(dataset_id, name, split=split, revision=commit)
    except (DatasetsError, ValueError, OSError, RuntimeError) as error:
        raise BadInput(f"{where}: the dataset cannot be loaded ({first_line(error)})") from error
    finally:
        logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
    if isinstance(loaded, datasets.Dataset):
        return _table_of_dataset(loaded, limit)
    choice = "train" if "train" in loaded else next(iter(loaded)) if len(loaded) == 1 else None
    if choice is None:
        raise BadInput(f"{where}: name the split with split=; there are {', '.join(map(str, loaded))}")
    return _table_of_dataset(loaded[choice], limit)


def find_dataset(dataset_id: str, revision: str | None, where: str) -> tuple[str, Path | None]:
    """The commit (40 hex digits) of a dataset's revision; where HF_HUB_OFFLINE is set, the cached one and its folder.

    Offline, `datasets` itself would take the latest cached version, whatever the revision.

    Raises:
        BadInput: Unknown dataset or revision; the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    from exporter.common.hub import download_errors

    with download_errors(where, "dataset", dataset_id, revision):
        if constants.HF_HUB_OFFLINE:
            folder = Path(snapshot_download(dataset_id, repo_type="dataset", revision=revision, local_files_only=True))
            return folder.name, folder
        commit = HfApi().dataset_info(dataset_id, revision=revision, timeout=30).sha
    if commit is None:
        raise BadInput(f"{where}: the Hub names no commit for this dataset")
    return commit, None


def _table_of_dataset(rows: Dataset, limit: int | None) -> Table:
    # Only the columns that are used are decoded: the others may be images.
    part = rows if limit is None else rows.select(range(min(limit, len(rows))))
    text = (name for name, feature in rows.features.items() if getattr(feature, "dtype", "").endswith("string"))

    def fetch(names: Sequence[str]) -> Iterable[Row]:
        return ((number, dict(row)) for number, row in enumerate(part.select_columns(list(names)), start=1))

    return Table(tuple(rows.column_names), tuple(text), fetch)
