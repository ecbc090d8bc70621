"""Where tables are printed."""

from __future__ import annotations

import sys

from rich.console import Console


def console(width: int) -> Console:
    """The terminal in its own width; `width` columns where stdout is none."""
    return Console(width=None if sys.stdout.isatty() else width)
