"""Output of every command: JSON on stdout, messages on stderr."""

from __future__ import annotations

import json
import re
from typing import Any

import click

from exporter.common.text import Notify


def printable_json(text: str) -> str:
    """JSON with all characters escaped that a terminal would obey: JSON itself escapes only those below the space."""
    return re.sub("[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def echo_json(content: Any) -> None:
    """What --json prints on stdout."""
    click.echo(printable_json(json.dumps(content, indent=2, ensure_ascii=False)))


def messages(quiet: bool) -> Notify:
    """What prints a message, or with `quiet` drops it."""
    return lambda text: None if quiet else click.echo(text, err=True)
