"""The folder in which an export keeps what it computes, for the next one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

FOLDER = "UNSKILL_CACHE"
"""The environment variable that names another folder; empty: nothing is kept."""
MOST_BYTES = 8 * 2**30
SUFFIX, PART = ".safetensors", ".part"


def cache_folder() -> Path | None:
    """Where work is kept; None where the user wants none."""
    given = os.environ.get(FOLDER)
    if given is not None:
        return Path(given) if given else None
    return user_cache_path("unskill", appauthor=False)


def cached_files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """All files of a cache folder, the unfinished ones of exports that were killed included."""
    found = []
    for path in folder.glob("??/*"):
        with suppress(FileNotFoundError):  # another export has just removed it
            if path.suffix in (SUFFIX, PART):
                found.append((path, path.stat()))
    return found


def make_room(folder: Path, most: int = MOST_BYTES) -> int:
    """Remove what was used longest ago, until what stays takes at most so many bytes; returns how many are free now.

    Raises OSError where a file cannot be removed.
    """
    files = sorted(cached_files(folder), key=lambda found: found[1].st_mtime)
    total = before = sum(state.st_size for _, state in files)
    for path, state in files:
        if total <= most:
            break
        path.unlink(missing_ok=True)
        total -= state.st_size
    return before - total
