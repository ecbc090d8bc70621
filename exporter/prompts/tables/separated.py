"""CSV files, whatever separates their cells."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from exporter.common.errors import BadInput
from exporter.prompts.tables.opening import TextFile
from exporter.prompts.tables.plain import Rows
from exporter.prompts.tables.table import Row

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
SNIFFED = 1000
"""Records by which the separator is found."""


@dataclass(frozen=True)
class Dialect:
    """separator: between cells; blanks: whether those before a quote are left out; named: whether a line `sep=;`, as
    Excel writes it, comes before the header."""

    separator: str = ","
    blanks: bool = False
    named: bool = False

    @property
    def spoken(self) -> str:
        return f"separated by {SEPARATORS.get(self.separator, repr(self.separator))}"


def read_csv(file: TextFile) -> Rows:
    """Separated values under a header line. Every cell is text: a prompt "NA" or "007" stays what it is.

    Raises BadInput where the file is JSON, and where several separators would do alike.
    """
    file.check_no_json("separated values")
    dialect = _find_dialect(file)
    return _rows(file, dialect), dialect.spoken


def _rows(file: TextFile, dialect: Dialect) -> Iterator[Row]:
    reader = Reader(file, dialect)
    records = iter(reader)
    header = next((cells for cells in records if cells), [])
    header = [name.strip() for name in header]
    if len(set(header)) < len(header):
        raise BadInput(f"{file.where}: the header names a column twice ({', '.join(header)})")
    for number, cells in enumerate(records, start=1):
        if not cells:
            continue
        if len(cells) != len(header):
            raise BadInput(
                f"{file.where}: line {reader.line} has {len(cells)} fields, the header {len(header)}, "
                f"{dialect.spoken}; put cells that hold one in double quotes"
            )
        yield number, dict(zip(header, cells, strict=True))


class Reader:
    """Records of a file as lists of cells. line: of the file, the last one of the record that was read.

    Iterating raises BadInput where a quote is wrong.
    """

    def __init__(self, file: TextFile, dialect: Dialect) -> None:
        self._file, self._dialect, self.line = file, dialect, 0

    def __iter__(self) -> Iterator[list[str]]:
        before = csv.field_size_limit(sys.maxsize)  # a long text is no fault
        try:
            with self._file.open() as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
                skipped = 1 if self._dialect.named and text.readline() else 0
                # strict: an unclosed quote is an error, not one prompt that swallows the rest of the file.
                separator, blanks = self._dialect.separator, self._dialect.blanks
                reader = csv.reader(text, strict=True, delimiter=separator, skipinitialspace=blanks)
                try:
                    for cells in reader:
                        self.line = reader.line_num + skipped
                        yield cells
                except csv.Error as error:
                    line = reader.line_num + skipped
                    raise BadInput(f"{self._file.where}: line {line} is not valid CSV ({error})") from error
        finally:
            csv.field_size_limit(before)


@dataclass(frozen=True)
class Widths:
    """Records in a dialect. header: cells of the first; fits: whether all have as many, more than one; quoted_late:
    whether a cell begins with blanks and a quote."""

    header: int = 0
    fits: bool = False
    quoted_late: bool = False


def _find_dialect(file: TextFile) -> Dialect:
    """The dialect in which every record has as many cells as the header, more than one; of a single column, commas."""
    _, first = next(file.lines(), (0, ""))
    if named := re.fullmatch(r"\"?sep=([^\"\s]|\t)\"?", first, re.IGNORECASE):
        return Dialect(named[1], named=True)
    found, headed = [], []
    for separator in SEPARATORS:
        plain, blanks = (_widths(file, Dialect(separator, each)) for each in (False, True))
        if plain.fits or blanks.fits:
            # Blanks before a quote would make it part of the cell.
            found.append(Dialect(separator, blanks.fits and (plain.quoted_late or not plain.fits)))
        elif plain.header > 1:
            headed.append((plain.header, Dialect(separator)))
    if len(found) > 1:
        both = " and ".join(SEPARATORS[each.separator] for each in found)
        raise BadInput(f"{file.where}: {both} separate its lines alike; begin it with a line 'sep=,' or the like")
    if found:
        return found[0]
    return max(headed, key=lambda each: each[0])[1] if headed else Dialect()


def _widths(file: TextFile, dialect: Dialect) -> Widths:
    header, fits, late = 0, True, False
    try:
        for cells in islice(filter(None, Reader(file, dialect)), SNIFFED):
            header = header or len(cells)
            fits = fits and len(cells) == header
            late = late or any(cell.startswith(" ") and cell.lstrip().startswith('"') for cell in cells)
    except BadInput:
        fits = False  # a quote is wrong in this dialect, and perhaps in no other
    return Widths(header, fits and header > 1, late)
