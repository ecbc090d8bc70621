"""Prompt templates: their spelling in flags and recipes, and their text."""

from __future__ import annotations

import os
import re
from pathlib import Path

from exporter.common.errors import BadInput


def read_template(value: str, flag: str) -> str:
    r"""A template as given on the command line: `@FILE` is the text of that file, without one line break at its end;
    anything else is the template itself, with `\n` for a line break, which is hard to type in a shell, `\\n` for a
    backslash and an n, and `\@` at its beginning for an @.

    Raises BadInput if the file cannot be read as UTF-8 text or is empty.
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
    """The template of --prompt-template; None without one, for that of the export. Raises as `read_template`."""
    return None if value is None else read_template(value, "--prompt-template")


def write_template(text: str) -> str:
    r"""The inverse of `read_template`: adds a backslash wherever that removes one."""
    return re.sub(r"(\\+)(?=n)", r"\1\\", re.sub(r"\A(?=\\*@)", r"\\", text))
