"""JSON as a checkpoint's files have it, and the names of those that everything else looks for."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exporter.common.errors import BadInput, RunFailed


def write_json(path: Path, content: Any) -> None:
    path.write_text(json_text(content), encoding="utf-8")


def json_text(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def human_size(count: int) -> str:
    """Bytes for people: 1.2 GB, 3.4 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


@contextmanager
def write_errors(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn an OSError met while writing `path` into a RunFailed of one line; a full disk says what was needed.

    Where another file is at fault, for instance one that was to be copied into `path`, it is named too.
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
    """Raise BadInput where one folder is the other or inside it: writing `out` would change or destroy `folder`.

    names: what the user calls the two, such as "OUT and CHECKPOINT". A `folder` that is not there, for instance a Hub
    id, is apart from everything.
    """
    ours, theirs = out.resolve(), Path(folder).resolve()
    # isdir, unlike Path.is_dir, also takes a name too long for a file.
    if os.path.isdir(theirs) and (ours == theirs or ours in theirs.parents or theirs in ours.parents):
        raise BadInput(f"{out}: {names} must be folders apart from each other")


def beside(folder: str, ending: str) -> Path:
    """Beside a folder another one, its name with an ending; of a Hub id one in the working directory."""
    place = Path(folder) if os.path.isdir(folder) else Path(folder.rstrip("/").split("/")[-1])
    return sibling(place, ending)


def sibling(place: Path, ending: str) -> Path:
    """The same for a folder that may not be there yet. Raises BadInput for the root, which is in no folder."""
    if place.name in ("", ".."):  # beside the folder that one is in, not inside it
        place = place.resolve()
    if not place.name:
        raise BadInput(f"{place} has nothing beside it, where NAME{ending} would be: name the folder to write")
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
