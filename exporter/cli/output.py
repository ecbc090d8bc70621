"""What every command prints: JSON on stdout, messages on stderr."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import click


def printable_json(text: str) -> str:
    """JSON that holds nothing which a terminal obeys: JSON itself escapes only what is below the space."""
    return re.sub("[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def echo_json(content: Any) -> None:
    """What --json prints on stdout."""
    click.echo(printable_json(json.dumps(content, indent=2, ensure_ascii=False)))


def messages(quiet: bool) -> Callable[[str], None]:
    return lambda text: None if quiet else click.echo(text, err=True)
