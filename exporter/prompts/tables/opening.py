"""Text files as bytes and lines, unpacked where they are compressed; files that are something else by name."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from exporter.common.errors import BadInput

HEAD = 512  # bytes that tell what a file is


def open_zst(path: Path) -> IO[bytes]:
    import pyarrow

    # The standard library has it from Python 3.14 on.
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


@dataclass(frozen=True)
class Compression:
    """start: the first bytes of every such file; open: reads what is in it."""

    start: bytes
    open: Callable[[Path], Any]


COMPRESSIONS = {
    ".gz": Compression(b"\x1f\x8b", gzip.open),
    ".bz2": Compression(b"BZh", bz2.open),
    ".xz": Compression(b"\xfd7zXZ\x00", lzma.open),
    ".zst": Compression(b"\x28\xb5\x2f\xfd", open_zst),
}
"""By the ending of a file's name."""

OTHERS = {
    b"PK\x03\x04": "a zip archive or a spreadsheet; unpack it, or save it as .csv",
    b"PAR1": "a parquet file; name it .parquet",
    b"ARROW1": "an Arrow file; name it .arrow",
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself; fetch that with: git lfs pull",
    b"<!doctype html": "a web page and not the file itself; download that",
    b"<html": "a web page and not the file itself; download that",
}
"""What may lie under the name of a file with prompts, by its first bytes in lower case or as they are."""


def check_content(head: bytes, where: str) -> None:
    """Raise BadInput where the first bytes are those of a file that cannot be meant."""
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    for first, what in OTHERS.items():
        if start.startswith(first) or start.lower().startswith(first):
            raise BadInput(f"{where}: is {what}")


@dataclass(frozen=True)
class TextFile:
    """A file of UTF-8 text, compressed or not, whatever its name says. where: how errors name it."""

    path: Path
    where: str

    def open(self) -> IO[bytes]:
        """The text's bytes from the beginning."""
        with self.path.open("rb") as file:
            start = file.read(8)
        for each in COMPRESSIONS.values():
            if start.startswith(each.start):
                return cast("IO[bytes]", each.open(self.path))
        return self.path.open("rb")

    def check(self) -> None:
        """Raise BadInput where the content is empty or no text that was meant."""
        with self.open() as file:
            head = file.read(HEAD)
        if not head:
            raise BadInput(f"{self.where}: the file is empty")
        check_content(head, self.where)
        if b"\0" in head:  # UTF-16 without a byte order mark is UTF-8 with many of them
            raise BadInput(f"{self.where}: is not UTF-8 text (it holds NUL bytes, as UTF-16 does); save it as UTF-8")

    def lines(self) -> Iterator[tuple[int, str]]:
        """(line number, line without its end) of every line that is not blank; a UTF-8 byte order mark is dropped."""
        with self.open() as file:
            # Bytes end lines at \n only, so that U+2028 and the like stay inside a prompt.
            for number, raw in enumerate(_raw_lines(file), start=1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise BadInput(
                        f"{self.where}: line {number} is not UTF-8 text ({error.reason}); save it as UTF-8"
                    ) from error
                if text.strip():
                    yield number, text.removesuffix("\n").removesuffix("\r")

    def json(self) -> Any:
        """The whole file as one JSON value. Raises BadInput where it is none."""
        with self.open() as file:
            return parse_json(file.read().decode("utf-8-sig"), self.where)

    def check_no_json(self, instead: str) -> None:
        """Raise BadInput where the file is JSON, or has an object or list a line. instead: what it should hold."""
        two = [text for _, (_, text) in zip(range(2), self.lines(), strict=False)]
        if two and two[0].lstrip()[:1] in ("[", "{") and (all(map(is_json, two)) or is_json(self._whole())):
            raise BadInput(f"{self.where}: holds JSON and not {instead}; name it .json or .jsonl")

    def _whole(self) -> str:
        with self.open() as file:
            return file.read().decode("utf-8-sig", "replace")


def _raw_lines(file: IO[bytes]) -> Iterator[bytes]:
    first = file.readline()
    # Lone carriage returns end lines where nothing else does, as on old Macs; elsewhere they are part of a text.
    yield from (first,) if first.endswith(b"\n") else first.split(b"\r")
    yield from file


def parse_json(text: str, where: str) -> Any:
    """A JSON value; NaN, which pandas writes for what is missing, is null. Raises BadInput where it is none."""
    try:
        return json.loads(text, parse_constant=lambda name: None if name == "NaN" else float(name))
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise BadInput(f"{where} is not valid JSON ({error.msg}, {at})") from error
    except ValueError as error:
        raise BadInput(f"{where} holds a number that is too long") from error
    except RecursionError as error:
        raise BadInput(f"{where} is nested too deeply") from error


def is_json(text: str) -> bool:
    """Whether a text is a JSON object or list."""
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False
