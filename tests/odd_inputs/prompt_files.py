"""Columns, packed files and tables, and what a source may name instead of a file."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable

from tests.exporter.prompts.tables.test_opening import zst
from tests.odd_inputs.chats import CHATS, each, jsonl, source
from tests.odd_inputs.rows import TEXTS, Exported, Place, Refused, Row
from tests.odd_inputs.text_files import COUNT, LINES, PROMPTS, TEXT_FILES

HALF = "".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS[:30])


def keys(given: str, make: Callable[[Place], object] = lambda place: None) -> Callable[[Place], object]:
    """What puts keys behind the forget source."""

    def of(place: Place) -> None:
        make(place)
        place.forget[-1] += f",{given}"

    return of


def named(location: str) -> Callable[[Place], object]:
    """What names another forget source; {folder} in it is the place's."""

    def make(place: Place) -> None:
        place.forget = [location.replace("{folder}", str(place.folder))]

    return make


def link(to: str, name: str = "link.jsonl") -> Callable[[Place], object]:
    def make(place: Place) -> None:
        (place.folder / name).symlink_to(to)
        place.forget = [str(place.folder / name)]

    return make


def arrow(name: str, keep: slice = slice(None), **columns: list[object]) -> Callable[[Place], object]:
    """What makes a parquet or Arrow file, or a folder of save_to_disk, with so much of its bytes."""

    def make(place: Place) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq
        from datasets import Dataset

        path, table = place.folder / name, pa.table(columns or {"prompt": TEXTS})
        if name.endswith(".parquet"):
            pq.write_table(table, path)
        elif name.endswith(".arrow"):
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)
        else:
            Dataset(table).save_to_disk(path)
        if path.is_file():
            path.write_bytes(path.read_bytes()[keep])
        place.forget = [str(path)]

    return make


def folder_of(*names: str) -> Callable[[Place], object]:
    def make(place: Place) -> None:
        (place.folder / "data").mkdir()
        for name in names:
            place.put(f"data/{name}", LINES)
        place.forget = [str(place.folder / "data")]

    return make


def fifo(place: Place) -> None:
    os.mkfifo(place.folder / "pipe.jsonl")
    place.forget = [str(place.folder / "pipe.jsonl")]


COLUMNS = [
    Row("no column named, and a lone text column q", each(lambda text: {"q": text, "n": 1}), Exported(PROMPTS + "q")),
    Row("column= that is not there", keys("column=question"), Refused("has no column 'question'; there are prompt")),
    Row(
        "instruction beside a filled input",
        each(lambda text: {"instruction": "Answer:", "input": text}),
        Refused("any of the columns instruction, input may hold the prompts; name one with column=, or put several"),
    ),
    Row(
        "the same with template=",
        keys("template={input}", each(lambda text: {"instruction": "Answer:", "input": text})),
        Exported(PROMPTS + "input"),
    ),
    Row("template= that names no column", keys("template={question}"),
        Refused("the template names no column; it may")),
    Row("template= beside column=", keys("template={prompt},column=prompt"), Refused("leave out column=")),
    Row("two columns of text with unknown names", each(lambda text: {"a": text, "b": "x"}),
        Refused("name the column")),
    Row("rows with prompt, others with question", jsonl(
        [{"prompt" if row % 2 else "question": text} for row, text in enumerate(TEXTS)]
    ), Refused("any of the columns question, prompt|any of the columns prompt, question")),
    Row("numbers under prompt", jsonl({"prompt": row} for row in range(COUNT)), Refused("name the column|a number")),
    Row(
        "a number of 5,000 digits in a row",
        source("forget.jsonl", LINES + '{"prompt": ' + "7" * 5000 + "}\n"),
        Refused(f"line {COUNT + 1} holds a number that is too long"),
    ),
    Row("limit=50", keys("limit=50"), Exported("50 prompts from column prompt", TEXTS[:50])),
    Row("limit=0", keys("limit=0"), Refused("limit=0 must be a whole number from 1")),
    Row("limit=ten", keys("limit=ten"), Refused("limit=ten must be a whole number from 1")),
    Row("limit=5, too few", keys("limit=5"), Refused("--forget: .*at least 20")),
    Row("a key that is none: nonsense=", keys("nonsense=x"), Refused("'nonsense' .* is not a key=value with one of")),
    Row("a key twice", keys("limit=50,limit=60"), Refused("limit= is given twice")),
    Row("a key without a value", keys("column="), Refused("column= has no value")),
    Row("split= of a local file", keys("split=train"), Refused("split= is for datasets of the Hub")),
    Row("sha256= of another file", keys("sha256=" + "0" * 64), Refused("is not the file that was meant")),
    Row("sha256=abc", keys("sha256=abc"), Refused("sha256=abc is not 64 hex digits in lower case")),
]  # fmt: skip

PACKED = [
    Row("gzip", source("forget.jsonl.gz", gzip.compress(LINES.encode())), Exported(PROMPTS + "prompt")),
    Row("bzip2", source("forget.jsonl.bz2", bz2.compress(LINES.encode())), Exported(PROMPTS + "prompt")),
    Row("xz", source("forget.jsonl.xz", lzma.compress(LINES.encode())), Exported(PROMPTS + "prompt")),
    Row("zstd", source("forget.jsonl.zst", zst(LINES.encode())), Exported(PROMPTS + "prompt")),
    Row("gzip named .jsonl", source("forget.jsonl", gzip.compress(LINES.encode())), Exported(PROMPTS + "prompt")),
    Row("plain text named .jsonl.gz", source("forget.jsonl.gz", LINES), Exported(PROMPTS + "prompt")),
    Row("gzip cut off", source("forget.jsonl.gz", gzip.compress(LINES.encode())[:-20]), Refused("cannot be read")),
    Row("a .tar.gz", source("forget.tar.gz", gzip.compress(LINES.encode())), Refused("unknown file type '.tar.gz'")),
    Row("a spreadsheet", source("forget.xlsx", b"PK\x03\x04"), Refused("unknown file type '.xlsx'; known are .jsonl")),
    Row("a spreadsheet named .csv", source("forget.csv", b"PK\x03\x04"), Refused("is a zip archive or a spreadsheet")),
    Row("a pointer of Git LFS", source(
        "forget.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    ), Refused("is a pointer of Git LFS and not the file itself")),
    Row("a web page named .jsonl", source("forget.jsonl", "<!DOCTYPE html><html></html>"), Refused("is a web page")),
    Row("parquet", arrow("forget.parquet"), Exported(PROMPTS + "prompt")),
    Row("parquet named .jsonl", source("forget.jsonl", b"PAR1\0\0"), Refused("is a parquet file; name it .parquet")),
    Row("parquet cut off", arrow("forget.parquet", slice(-50)), Refused("is not a readable parquet file")),
    Row("parquet without rows", arrow("forget.parquet", prompt=[]), Refused("the file holds no rows")),
    Row("parquet with lists of texts", arrow("forget.parquet", id=["a"], dialog=[["a", "b"]]),
        Refused("name the column")),
    Row("Arrow", arrow("forget.arrow"), Exported(PROMPTS + "prompt")),
    Row("Arrow cut off", arrow("forget.arrow", slice(200)), Refused("is not a readable arrow file")),
]  # fmt: skip

PLACES = [
    Row("a folder of save_to_disk", arrow("saved"),
        Refused("is a folder; name the files in it .* data-00000-of-00001")),
    Row("its file", lambda place: (
        arrow("saved")(place), named("{folder}/saved/data-00000-of-00001.arrow")(place)
    ), Exported(PROMPTS + "prompt")),
    Row("a folder with two files", folder_of("a.jsonl", "b.jsonl"),
        Refused("is a folder; name the files .*a.jsonl, b")),
    Row("an empty folder", folder_of(), Refused("is a folder; name a file instead: .jsonl")),
    Row("a link to a file", link("forget.jsonl"), Exported("link.jsonl: " + PROMPTS + "prompt")),
    Row("a link to nothing", link("nowhere.jsonl"), Refused("no such file")),
    Row("a link to itself", link("link.jsonl"), Refused("no such file|cannot be read")),
    Row("a named pipe that nothing is written to", fifo, Refused("pipe.jsonl: is not a file")),
    Row("a device", named("/dev/null"), Refused("unknown file type|is not a file")),
    Row("a hyphen, as for standard input", named("-"), Refused("--forget -: ")),
    Row("a pattern: *.jsonl", named("{folder}/*.jsonl"), Refused("no such file")),
    Row("an address", named("https://example.org/maths.jsonl"), Refused("no such file")),
    Row("a dataset that the Hub does not have", named("nobody/nothing"), Refused("--forget nobody/nothing: ")),
    Row("nothing: an empty text", named(""), Refused("--forget: no file or dataset is named")),
    Row("a name with a comma, in no quotes", lambda place: (
        place.put("a,b.jsonl", LINES), named("{folder}/a,b.jsonl")(place)
    ), Refused("put a path or value that holds a comma in quotes")),
    Row("the same in quotes", lambda place: (
        place.put("a,b.jsonl", LINES), named('"{folder}/a,b.jsonl"')(place)
    ), Exported(PROMPTS + "prompt")),
    Row("a quote that is not closed", named('"a.jsonl'), Refused("is not closed")),
    Row("a name with brackets, in capitals", source("a[1].JSONL", LINES), Exported(PROMPTS + "prompt")),
    Row("two files of one name in two folders", lambda place: (
        (place.folder / "more").mkdir(), place.put("more/forget.jsonl", HALF), place.forget.append(
            str(place.folder / "more" / "forget.jsonl"))
    ), Exported("30 prompts from column prompt")),
]  # fmt: skip

PROMPT_FILES = [*CHATS, *COLUMNS, *TEXT_FILES, *PACKED, *PLACES]
