"""Reading and writing files: JSON, errors of writing, sizes, folders beside others."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exporter.common.errors import BadInput, RunFailed, first_line


def write_json(path: Path, content: Any) -> None:
    path.write_text(json_text(content), encoding="utf-8")


def json_text(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def human_size(count: int) -> str:
    """A number of bytes for people: 1.2 GB, 3.4 MB, 12 bytes."""
    from rich.filesize import decimal  # here, so that --help does not load rich

    return decimal(count)


@contextmanager
def write_errors(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn an OSError raised while writing `path` into a RunFailed of one line, for a full disk with the space needed.

    If another file caused it, such as one being copied to `path`, it is named too.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            other = Path(error.filename).name if isinstance(error.filename, str) else path.name
            named = path.name if other == path.name else f"{path.name}: {other}"
            raise RunFailed(f"cannot write {named}: {reason}") from error
        needs = "" if needed_bytes is None else f"needs {human_size(needed_bytes)}, "
        free = human_size(shutil.disk_usage(path.parent).free)
        raise RunFailed(f"disk full while writing {path.name} ({reason}): {needs}{free} free") from error


def check_apart(out: Path, folder: str | Path, names: str) -> None:
    """Raise BadInput if one folder is the other or inside it: writing `out` would change or destroy `folder`.

    names: what the user calls the two, such as "OUT and CHECKPOINT". A `folder` that does not exist, such as a Hub id,
    always passes.
    """
    try:
        ours, theirs = out.resolve(), Path(folder).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: what Python 3.11 and 3.12 say of a link to itself
        raise BadInput(f"{names}: {first_line(error)}; name folders that links do lead to") from error
    # Unlike Path.is_dir, isdir accepts a name too long for a file.
    if os.path.isdir(theirs) and (ours == theirs or ours in theirs.parents or theirs in ours.parents):
        raise BadInput(f"{out}: {names} must be separate folders")


def link_out(folder: Path, paths: Iterable[Path]) -> Path | None:
    """The first file that is a link to something outside of the folder, or not to a regular file; None without any.

    A snapshot in the Hub's cache is made of links to its own blobs, which are no such links.
    """
    here = folder.resolve()
    allowed = [here, *([here.parent.parent / "blobs"] if here.parent.name == "snapshots" else [])]
    for path in paths:
        place = path.resolve()
        if not place.is_file() or not any(place.is_relative_to(each) for each in allowed):
            return path
    return None


def beside(folder: str, ending: str) -> Path:
    """The path beside a folder with an ending added to its name; for a Hub id, in the working directory."""
    return sibling(Path(folder) if os.path.isdir(folder) else Path(Path(folder).name), ending)


def sibling(place: Path, ending: str) -> Path:
    """The same for a folder that may not exist yet. Raises BadInput for the root, which has no parent."""
    if place.name in ("", ".."):  # otherwise the path would be inside the folder
        place = place.resolve()
    if not place.name:
        raise BadInput(f"{place} has no folder beside it for NAME{ending}: name the folder to write")
    return place.with_name(place.name + ending)


def read_json(path: Path, name: str, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise BadInput(f"{what} {name} has no {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{what} {name}: {path.name} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{what} {name}: {path.name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise BadInput(f"{what} {name}: {path.name} is not a JSON object")
    return content
