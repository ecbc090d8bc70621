"""OUT complete or not at all: a checkpoint is written into a temporary folder beside it that becomes OUT in one step.

If the process is killed at any moment, OUT is still the complete old or the complete new one. Like `cp`, nothing is
flushed to the disk (fsync), so a power cut within seconds of the end may damage the new one.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from exporter.common.errors import BadInput, RunFailed
from exporter.common.files import human_size, write_errors

AT_FDCWD = -100
RENAME_EXCHANGE = 2
# Name of the old OUT while two plain renames replace it. Not `OUT.old`, which people use for their own backups:
# `repair` moves or removes whatever has this name.
OLD_SUFFIX = ".unskill-old"


def repair(out: Path) -> list[str]:
    """Clean up after killed runs beside OUT, before OUT itself is checked; returns messages for the user.

    An old OUT that was being replaced is moved back if OUT is missing, else removed. Temporary folders of dead runs
    are removed; those of live runs, which hold a lock, are kept. Raises RunFailed if the old OUT cannot be moved.
    """
    out = out.resolve()
    if not os.access(out.parent, os.R_OK | os.W_OK | os.X_OK):
        return []  # missing or not writable, which check_target reports
    name = re.compile(re.escape(f".{out.name}.unskill-") + "[0-9a-f]{8}")
    leftovers = [entry.path for entry in os.scandir(out.parent) if name.fullmatch(entry.name)]
    messages, live = [], False
    for folder in sorted(leftovers):
        try:
            _remove_unless_live(folder)
            messages.append(f"removed {folder}, left over from an interrupted run")
        except FileNotFoundError:
            pass  # a concurrent run ended or cleaned up first
        except BlockingIOError:
            live = True
        except OSError as error:  # also file systems without locks, where a dead run looks like a live one
            messages.append(f"left {folder} alone ({error.strerror}): remove it unless another run is using it")
    old = out.with_name(out.name + OLD_SUFFIX)
    if os.path.isdir(old) and not live:  # a live run may be between its two renames
        if os.path.lexists(out):
            shutil.rmtree(old, ignore_errors=True)
            messages.append(f"removed {old}, left over from an interrupted run")
        else:
            with write_errors(out):
                old.rename(out)
            messages.append(f"moved {old.name} back to {out}: an interrupted run had moved it aside")
    return messages


def check_target(
    out: Path,
    overwrite: bool,
    needed_bytes: int,
    what: str = "checkpoint",
    marker: str = "config.json",
    ours: Callable[[Path], bool] = lambda folder: True,
) -> None:
    """Refuse, before any slow work, an OUT that cannot be written or must not be replaced. Call `repair` first.

    what, marker: what --overwrite may replace, and the file that identifies it; ours: a further condition on it.

    Raises BadInput if OUT exists without --overwrite, or with it is a mount point or neither empty nor what may be
    replaced, or if its parent is missing or not writable; RunFailed if fewer than `needed_bytes` are free.
    """
    if os.path.islink(out) and not os.path.exists(out):
        raise BadInput(
            f"{out} is a link to {os.readlink(out)}, which is not there: take the link out, or name its target"
        )
    target = out.resolve()
    parent = target.parent
    longest = 255 - len("..unskill-") - 8  # bytes of a name that a staging folder's name is made of
    if len(os.fsencode(target.name)) > longest:
        raise BadInput(f"{out.name[:40]}...: the name of OUT is too long, choose one of at most {longest} bytes")
    if os.path.lexists(target):
        if not overwrite:
            raise BadInput(f"{out} exists: choose another folder or give --overwrite")
        if not target.is_dir():
            raise BadInput(f"{out} is not a folder: --overwrite replaces {what} folders only")
        if target.is_mount():
            raise BadInput(f"{out} is a mount point, which cannot be replaced: name a folder inside it")
        if not os.access(target, os.R_OK | os.W_OK | os.X_OK):
            raise BadInput(f"{out} is not writable")
        if (target / marker).is_file():
            if not ours(target):
                raise BadInput(f"{out} is not a {what} that unskill wrote: --overwrite will not replace it")
        elif any(target.iterdir()):
            raise BadInput(f"{out} is not a {what} (it has no {marker}): --overwrite will not replace it")
    if not parent.is_dir():
        raise BadInput(f"{out}: the folder {parent} does not exist")
    if not os.access(parent, os.R_OK | os.W_OK | os.X_OK):
        raise BadInput(f"{out}: the folder {parent} is not writable")
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise RunFailed(f"{out}: too little disk space: needs {human_size(needed_bytes)}, {human_size(free)} free")


class Staging:
    """A temporary folder `path` beside OUT that `commit` turns into OUT; without `commit`, it is removed on exit.

    Locked (flock) while in use, so that a concurrent run does not take it for a leftover. Raises RunFailed if the
    folder cannot be made or OUT cannot be replaced, as when OUT has appeared since `check_target`.

        with Staging(out, overwrite=True) as staging:
            (staging.path / "config.json").write_text(...)
            staging.commit()
    """

    def __init__(self, out: Path, overwrite: bool = False) -> None:
        self.out = out.resolve()  # a link's target is replaced, not the link
        self.overwrite = overwrite
        self.path = self.out

    def __enter__(self) -> Staging:
        with write_errors(self.out):
            while True:
                # Not tempfile.mkdtemp, whose 0700 would become OUT's.
                self.path = self.out.with_name(f".{self.out.name}.unskill-{secrets.token_hex(4)}")
                self.path.mkdir()
                self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
                with suppress(OSError):  # a file system without locks, where `repair` leaves every folder alone
                    fcntl.flock(self._lock, fcntl.LOCK_EX)
                if self.path.exists():
                    return self
                os.close(self._lock)  # a concurrent run removed it between mkdir and flock

    def commit(self) -> None:
        """Make the folder OUT. An old OUT is then at `path`, and removed when the `with` ends."""
        if not (self.overwrite and self.out.is_dir()):
            with write_errors(self.out):
                self.path.rename(self.out)  # fails on a folder with anything in it
        elif not _exchange(self.path, self.out):
            with write_errors(self.out):
                self._swap()

    def keep(self, ending: str) -> Path:
        """Keep what was written beside OUT, under OUT's name with an ending, instead of removing it; returns its path.

        Raises RunFailed where something has that name already.
        """
        kept = self.out.with_name(self.out.name + ending)
        with write_errors(kept):
            self.path.rename(kept)
        return kept

    def _swap(self) -> None:
        """Replace OUT where the two cannot be exchanged. If killed in between, `repair` moves the old one back."""
        old = self.out.with_name(self.out.name + OLD_SUFFIX)
        self.out.rename(old)
        try:
            self.path.rename(self.out)
        finally:  # an error, or Ctrl-C
            if not self.out.exists():
                old.rename(self.out)
        old.rename(self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Unfinished work or the old OUT; nothing after a plain rename. The next run reports what cannot be removed.
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_unless_live(folder: str) -> None:
    """Remove the folder under its lock; BlockingIOError if a live run holds the lock."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; False if the system, its libc or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:  # not Linux, or an old libc
        return False
    # Whatever made it fail, the plain renames that follow either work or report it.
    flags = ctypes.c_uint(RENAME_EXCHANGE)
    return bool(renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), flags) == 0)
