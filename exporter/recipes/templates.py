"""Prompt templates: as flags and recipes spell them, and as they are used."""

from __future__ import annotations

import os
import re
from pathlib import Path

from exporter.common.errors import BadInput


def read_template(value: str, flag: str) -> str:
    r"""A template as given on the command line: `@FILE` is the text of that file, to the letter but for one line break
    at its end; anything else is taken in place, with `\n` for a line break, which few shells let one type, and `\\n`
    for a backslash and an n; `\@` at its beginning is an @.

    Raises:
        BadInput: The file cannot be read as UTF-8 text or is empty.
    """
    if not value.startswith("@"):
        plain = re.sub(r"\\(\\(?=n)|n)", lambda match: "\n" if match.group(1) == "n" else "\\", value)
        return re.sub(r"\A\\(?=\\*@)", "", plain)
    try:
        text = Path(os.path.expanduser(value[1:])).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{flag}: {value[1:]} is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise BadInput(f"{flag}: {value[1:]} cannot be read ({error.strerror})") from error
    if not text.strip():
        raise BadInput(f"{flag}: {value[1:]} is empty")
    return text.removesuffix("\n")


def given_template(value: str | None) -> str | None:
    """What --prompt-template gives, None where it is not given and prompts are formatted as the export's were.

    Raises BadInput as `read_template`.
    """
    return None if value is None else read_template(value, "--prompt-template")


def write_template(text: str) -> str:
    r"""What `read_template` reads this text from: with one backslash more where it would take one away."""
    return re.sub(r"(\\+)(?=n)", r"\1\\", re.sub(r"\A(?=\\*@)", r"\\", text))
