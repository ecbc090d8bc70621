"""Where prompts come from: `--forget SOURCE` and `--retain SOURCE`.

A SOURCE is `PATH_OR_DATASET_ID[,key=value...]`: a local file or a dataset of the Hugging Face Hub, with the column to
read, the number of rows and so on, as in `maths.jsonl,column=question,limit=400`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from exporter.common.errors import BadInput
from exporter.common.text import Notify, counted, printable, unheard
from exporter.prompts.chats import as_chat
from exporter.prompts.columns import answer_text, find_column, prompt_text
from exporter.prompts.tables.files import folder_message, looks_like_file, read_file
from exporter.prompts.tables.hub import find_dataset, read_hub
from exporter.prompts.tables.table import Table
from exporter.recipes.templates import read_template, write_template


@dataclass(frozen=True)
class Source:
    """A file or dataset and how to read it. Every field but `location` is None where it is not given.

    Attributes:
        location: Path of a local file, or id of a Hub dataset.
        column: Column of the prompt, as text or as a list of chat messages (the last user message is taken); not
            together with a template.
        answer: Second column, for methods that look at whole texts; of chat messages the last answer is taken.
        split: Split of a Hub dataset; by default "train", or the only one.
        name: Configuration of a Hub dataset.
        revision: Branch, tag or commit of a Hub dataset.
        limit: Number of rows, from the top.
        template: Text in which `{column}` is replaced by the row's value, for every column.
        sha256: Digest that a local file must have, 64 hex digits.
    """

    location: str
    column: str | None = None
    answer: str | None = None
    split: str | None = None
    name: str | None = None
    revision: str | None = None
    limit: int | None = None
    template: str | None = None
    sha256: str | None = None

    @property
    def options(self) -> dict[str, str | int]:
        """How it is read: every field that is given, except its location and its digest."""
        left_out = ("location", "sha256")
        return {name: value for name, value in vars(self).items() if value is not None and name not in left_out}

    @property
    def spec(self) -> str:
        """The text that `parse` reads this source from."""
        values = {name: str(value) for name, value in self.options.items()}
        if self.template is not None:
            values["template"] = write_template(self.template)
        if self.sha256 is not None:
            values["sha256"] = self.sha256
        return ",".join([_quoted(self.location), *(f"{name}={_quoted(value)}" for name, value in values.items())])

    @property
    def path(self) -> Path | None:
        """The local file that `location` means, whether or not it exists; None for a Hub dataset."""
        path = Path(os.path.expanduser(self.location))
        looks_local = (
            self.location.startswith((".", "/", "~")) or "\\" in self.location or self.location.count("/") > 1
        )
        return path if looks_local or looks_like_file(path) or os.path.exists(path) else None

    @property
    def label(self) -> str:
        """What output may call this source: the base name of a file or the id of a dataset, never a path."""
        return self.path.name if self.path is not None else self.location

    @classmethod
    def parse(cls, spec: str, flag: str) -> Source:
        """Parse `PATH_OR_DATASET_ID[,key=value...]`.

        A value or path in single or double quotes may hold commas. `template=@FILE` reads a file; in a template given
        in place, `\\n` is a line break (see `read_template`). `flag` is named in errors.

        Raises:
            BadInput: No location, an unknown or repeated key, a limit that is not a whole number from 1, a malformed
                sha256, a quote that is not closed, a template file that cannot be read.
        """
        location, *pairs = _split_spec(spec, flag)
        if not location.strip():
            raise BadInput(f"{flag}: no file or dataset is named in '{spec}'")
        known = [field.name for field in fields(cls) if field.name != "location"]
        values: dict[str, Any] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            key = key.strip()
            if not equals or key not in known:
                raise BadInput(
                    f"{flag}: '{key}' in '{spec}' is not a key=value with one of the keys {', '.join(known)}; "
                    "put a path or value that holds a comma in quotes"
                )
            if key in values:
                raise BadInput(f"{flag}: {key}= is given twice in '{spec}'")
            if not value:
                raise BadInput(f"{flag}: {key}= has no value in '{spec}'")
            values[key] = value
        if "limit" in values:
            if not re.fullmatch("[0-9]*[1-9][0-9]*", values["limit"]):
                raise BadInput(f"{flag}: limit={values['limit']} must be a whole number from 1")
            values["limit"] = int(values["limit"])
        if "template" in values:
            values["template"] = read_template(values["template"], f"{flag} template=")
        if "sha256" in values and not re.fullmatch("[0-9a-f]{64}", values["sha256"]):
            raise BadInput(f"{flag}: sha256={values['sha256']} is not 64 hex digits in lower case")
        return cls(location, **values)


def _split_spec(spec: str, flag: str) -> list[str]:
    """Split at commas outside quotes. A quote opens only at the start of the path or of a value."""
    parts: list[str] = []
    rest = spec
    while True:
        key = re.match(r"[^,=\"']*=", rest) if parts else None
        head = key.group() if key else ""
        rest = rest[len(head) :]
        if rest[:1] in ("'", '"'):
            quote = rest[0]
            # A doubled quote stands for the quote itself.
            match = re.match(rf"{quote}((?:[^{quote}]|{quote}{quote})*){quote}(?=,|\Z)", rest)
            if match is None:
                raise BadInput(f"{flag}: the quote {quote} is not closed before a comma or the end in '{spec}'")
            value = match.group(1).replace(quote * 2, quote)
            rest = rest[match.end() :]
        else:
            value, _, _ = rest.partition(",")
            rest = rest[len(value) :]
        parts.append(head + value)
        if not rest:
            return parts
        rest = rest[1:]


def _quoted(value: str) -> str:
    """A path or value as `_split_spec` reads it back: in quotes where it would otherwise be split or unquoted."""
    if "," not in value and not value.startswith(("'", '"')):
        return value
    return '"' + value.replace('"', '""') + '"'


@dataclass(frozen=True)
class Prompt:
    """One prompt and where it comes from.

    Attributes:
        text: The prompt itself, before any chat template.
        source: Label of its source.
        row: Its 1-based row there: line of a .txt or .jsonl file, otherwise data row.
        kind: Kind of an everyday prompt, such as "story".
        answer: Text of the source's `answer` column.
        form: Form of a packaged skill's prompt, such as "terse", or of a rendering, such as "typos".
        language: Language of a packaged prompt, such as "en".
        original: The prompt that this is a rendering of (see `renderings`), whose source and row it has.
    """

    text: str
    source: str
    row: int
    kind: str | None = None
    answer: str | None = None
    form: str | None = None
    language: str | None = None
    original: Prompt | None = None

    @property
    def given(self) -> Prompt:
        """The prompt as it was given: this one, or the one that it is a rendering of."""
        return self.original or self

    @property
    def sha256(self) -> str:
        """Hex digest of the text in UTF-8, which identifies the prompt wherever its text must not appear."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def load_prompts(source: Source, flag: str, notify: Notify = unheard) -> list[Prompt]:
    """Read all prompts of a source. Rows without text are left out; nothing else is changed.

    notify: is told in one line which column was taken and how the file was read.

    Raises:
        BadInput: A prompt cannot be read, or there is none, or several columns may be meant: one line that names the
            flag, the source and where possible the row.
    """
    if source.column is not None and source.template is not None:
        raise BadInput(f"{flag} {source.label}: template= names the columns it is filled with; leave out column=")
    table, where = open_source(source, flag)
    for name in filter(None, (source.column, source.answer)):
        if name not in table.columns:
            raise BadInput(f"{where}: has no column '{name}'; there are {', '.join(table.columns)}")
    if source.template is None:
        names = [source.column or find_column(table, where)]
    else:
        names = [name for name in table.columns if f"{{{name}}}" in source.template]
        if not names:
            columns = ", ".join(f"{{{name}}}" for name in table.columns)
            raise BadInput(f"{where}: the template names no column; it may use {columns}")
    prompts, left_out, chats = [], 0, False
    for number, row in table.fetch(list(dict.fromkeys([*names, *filter(None, [source.answer])]))):
        texts = {name: prompt_text(row[name], f"{where}: row {number}, column '{name}'") for name in names}
        chats = chats or any(as_chat(row[name]) for name in names)
        if not any(text.strip() for text in texts.values()):
            left_out += 1
            continue
        if source.template is None and isinstance(row[names[0]], (bool, int, float)):
            raise BadInput(
                f"{where}: row {number}, column '{names[0]}' holds a number, not text; name another with column="
            )
        text = texts[names[0]] if source.template is None else _fill(source.template, texts, names)
        answer = None
        if source.answer:
            answer = answer_text(row[source.answer], f"{where}: row {number}, column '{source.answer}'")
        try:
            (text + (answer or "")).encode()
        except UnicodeEncodeError as error:
            raise BadInput(f"{where}: row {number} holds half a surrogate pair, which is not a character") from error
        prompts.append(Prompt(text, source.label, number, answer=answer))
    columns = f"column {' and '.join(names)}"
    if not prompts:
        empty = "has no message of the user in any row" if chats else "is empty in every row"
        raise BadInput(f"{where}: holds no prompts: {columns} {empty}")
    said = [f"{where}: {counted(len(prompts), 'prompt')} from {columns}"]
    said += ["the last user message of each chat"] if chats else []
    said += [table.how] if table.how else []
    said += [f"{counted(left_out, 'row')} without text left out"] if left_out else []
    notify(printable(", ".join(said)))
    return prompts


def fingerprint(source: Source, flag: str = "SOURCE") -> str:
    """What identifies the data: sha256 (64 hex digits) of a local file, commit (40 hex digits) of a Hub dataset.

    Raises:
        BadInput: The file cannot be read; the dataset or its revision cannot be found.
    """
    if source.path is None:
        return find_dataset(source.location, source.revision, f"{flag} {source.label}")[0]
    try:
        with source.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"{flag} {source.label}: cannot be read ({error.strerror})") from error


def open_source(source: Source, flag: str) -> tuple[Table, str]:
    """The rows of a source, and how errors name it. Raises BadInput where it cannot be read."""
    where = f"{flag} {source.label}"
    path = source.path
    if path is None:
        if source.sha256 is not None:
            raise BadInput(f"{where}: sha256= is for local files; revision= pins a dataset of the Hub")
        pinned = {"name": source.name, "split": source.split, "revision": source.revision}
        return read_hub(source.location, **pinned, limit=source.limit, where=where), where
    # os.path returns False where Path raises: for a name that is too long, or in a folder that may not be entered.
    if os.path.isdir(path):
        raise BadInput(f"{flag}: {source.location} {folder_message(path)}")
    if not os.path.exists(path):
        raise BadInput(f"{flag}: no such file: {source.location}")
    if not os.path.isfile(path):  # reading a pipe might wait for ever, and sources are read more than once
        raise BadInput(f"{where}: is not a file but a pipe or a device; save what it gives as a file")
    for key in ("split", "name", "revision"):
        if getattr(source, key) is not None:
            raise BadInput(f"{where}: {key}= is for datasets of the Hub, and this is a local file; leave it out")
    if source.sha256 is not None and (found := fingerprint(source, flag)) != source.sha256:
        raise BadInput(
            f"{where}: is not the file that was meant: its sha256 is {found[:12]}... and not {source.sha256[:12]}... "
            f"(sha256=, or an export's recipe); {flag} on the command line takes another file"
        )
    return read_file(path, source.limit, where), where


def _fill(template: str, texts: Mapping[str, str], names: list[str]) -> str:
    # In one pass, so that a value that holds "{other}" stays as it is; without str.format, so that braces are text.
    pattern = "|".join(re.escape(f"{{{name}}}") for name in names)
    return re.sub(pattern, lambda match: texts[match.group()[1:-1]], template)
