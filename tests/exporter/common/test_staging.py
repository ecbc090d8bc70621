"""OUT whole or not at all: refusals before the work, one-step replacement, and what kill -9 leaves behind."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exporter.common import staging
from exporter.common.errors import BadInput, RunFailed
from exporter.common.files import human_size, write_errors
from exporter.common.staging import OLD_SUFFIX, Staging, check_target, repair

FILES = 8
REPOSITORY = Path(__file__).parents[3]


def fill(folder: Path, generation: int, pause: float = 0.0) -> None:
    """A checkpoint whose files all say which run wrote them; config.json comes last but one."""
    folder.mkdir(exist_ok=True)
    for name in [*map(str, range(FILES - 2)), "config.json", "z"]:
        time.sleep(pause)
        (folder / name).write_text(f"{generation} " * 1000)


def generation(folder: Path) -> int:
    """Which run wrote the folder; fails where it is not whole."""
    found = {path.read_text() for path in folder.iterdir()}
    assert len(list(folder.iterdir())) == FILES and len(found) == 1
    content = found.pop().split()
    assert len(content) == 1000
    return int(content[0])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Replace OUT in one step, and as where that is not to be had."""
    if request.param == "two renames":
        monkeypatch.setattr(staging, "_exchange", lambda one, other: False)
    return request.param


def test_a_link_to_nowhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("elsewhere")
    with pytest.raises(BadInput, match="out is a link to elsewhere, which is not there: take the link out"):
        check_target(tmp_path / "out", overwrite=True, needed_bytes=0)


def test_new_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    umask = os.umask(0o022)
    try:
        with Staging(out) as new:
            assert new.path.parent == tmp_path and not out.exists()
            fill(new.path, 1)
            new.commit()
    finally:
        os.umask(umask)
    assert names(tmp_path) == ["out"] and generation(out) == 1
    assert stat.S_IMODE(out.stat().st_mode) == 0o755


def test_replaced_out(tmp_path: Path, way: str) -> None:
    out = tmp_path / "out"
    fill(out, 1)
    (tmp_path / "link").symlink_to("out")
    for run, path in (2, out), (3, tmp_path / "link"):
        with Staging(path, overwrite=True) as new:
            fill(new.path, run)
            assert generation(out) == run - 1
            new.commit()
        assert names(tmp_path) == ["link", "out"] and generation(out) == run
    assert (tmp_path / "link").is_symlink()


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_exchange(tmp_path: Path) -> None:
    fill(tmp_path / "a", 1)
    fill(tmp_path / "ü", 2)
    assert staging._exchange(tmp_path / "a", tmp_path / "ü")
    assert (generation(tmp_path / "a"), generation(tmp_path / "ü")) == (2, 1)
    assert not staging._exchange(tmp_path / "a", tmp_path / "none")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RunFailed, ValueError, None])
def test_unfinished_work_leaves_nothing(tmp_path: Path, error: type[BaseException] | None) -> None:
    out = tmp_path / "out"
    fill(out, 1)
    try:
        with Staging(out, overwrite=True) as new:
            fill(new.path, 2)
            if error:
                raise error
    except BaseException as raised:
        assert type(raised) is error
    assert names(tmp_path) == ["out"] and generation(out) == 1


@pytest.mark.parametrize("overwrite", [False, True])
def test_out_that_appears_meanwhile(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "out"
    with pytest.raises(RunFailed, match="cannot write out: "), Staging(out, overwrite) as new:
        fill(new.path, 2)
        out.write_text("a file") if overwrite else fill(out, 1)
        new.commit()
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_stopped_between_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    out = tmp_path / "out"
    fill(out, 1)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.startswith(".out.unskill-"):
            raise error
        return real(self, target)

    monkeypatch.setattr(staging, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(RunFailed if error is OSError else error), Staging(out, overwrite=True) as new:
        fill(new.path, 2)
        new.commit()
    assert names(tmp_path) == ["out"] and generation(out) == 1


def test_repair_of_killed_swaps(tmp_path: Path) -> None:
    out, old, temporary = tmp_path / "out", tmp_path / f"out{OLD_SUFFIX}", tmp_path / ".out.unskill-0123abcd"
    # Killed before the new one took its place.
    fill(old, 1)
    fill(temporary, 2)
    remarks = repair(out)
    assert [str(temporary) in remarks[0], f"moved {old.name} back to {out}" in remarks[1], len(remarks)] == [1, 1, 2]
    assert names(tmp_path) == ["out"] and generation(out) == 1
    # Killed after that.
    fill(old, 0)
    assert str(old) in repair(out)[0]
    assert names(tmp_path) == ["out"] and generation(out) == 1
    assert repair(out) == []


def test_repair_leaves_others_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    others = [
        "out.old",
        ".out.unskill-",
        ".out.unskill-0123abcd.d",
        ".xout.unskill-0123abcd",
        ".out2.unskill-0123abcd",
    ]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".out.unskill-00000000").write_text("a file")
    (tmp_path / ".out.unskill-11111111").symlink_to("out.old")
    fill(tmp_path / f"out{OLD_SUFFIX}", 1)
    with Staging(out) as live:
        remarks = repair(out)
        assert live.path.is_dir() and (tmp_path / f"out{OLD_SUFFIX}").exists()
    assert len(remarks) == 2 and all("alone" in remark for remark in remarks)
    assert set(others) < set(names(tmp_path)) and len(names(tmp_path)) == 8
    assert repair(tmp_path / "none" / "out") == []


def test_repair_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(staging.fcntl, "flock", flock)
    with Staging(tmp_path / "out") as new:
        remarks = repair(tmp_path / "out")
        assert new.path.exists() and len(remarks) == 1 and str(new.path) in remarks[0]


def test_folder_swept_away_before_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first: list[Path] = []

    def flock(handle: int, operation: int) -> None:
        if not first:
            first.extend(tmp_path.iterdir())
            shutil.rmtree(first[0])

    monkeypatch.setattr(staging.fcntl, "flock", flock)
    with Staging(tmp_path / "out") as new:
        assert new.path.exists() and new.path != first[0]


def test_check_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    check_target(out, False, 0)
    check_target(out, True, 0)
    with pytest.raises(RunFailed, match=r"out: too little disk space: needs 1\.0 PB, [0-9.]+ .B free"):
        check_target(out, False, 10**15)
    with pytest.raises(BadInput, match="none does not exist"):
        check_target(tmp_path / "none" / "out", False, 0)

    out.mkdir()
    with pytest.raises(BadInput, match=r"out exists: .*--overwrite"):
        check_target(out, False, 0)
    check_target(out, True, 0)
    (out / "thesis.tex").write_text("years")
    with pytest.raises(BadInput, match=r"is not a checkpoint .*config\.json"):
        check_target(out, True, 0)
    fill(out, 1)
    check_target(out, True, 0)
    with pytest.raises(BadInput, match="is not a folder"):
        check_target(out / "z", True, 0)
    with pytest.raises(BadInput, match="does not exist"):
        check_target(out / "z" / "out", True, 0)
    with pytest.raises(BadInput, match="mount point"):
        check_target(Path("/"), True, 0)

    monkeypatch.chdir(tmp_path)
    check_target(Path("out"), True, 0)
    with pytest.raises(BadInput, match="exists"):
        check_target(Path(), False, 0)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    with pytest.raises(BadInput, match="is not writable"):
        check_target(tmp_path / "new", False, 0)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != out)
    with pytest.raises(BadInput, match="is not writable"):
        check_target(out, True, 0)


def test_a_name_that_the_staging_folder_cannot_have(tmp_path: Path) -> None:
    longest = tmp_path / ("n" * 235 + "é")
    check_target(longest, overwrite=False, needed_bytes=0)
    with Staging(longest) as staging:
        staging.commit()
    assert longest.is_dir()
    with pytest.raises(BadInput, match="the name of OUT is too long, choose one of at most 237 bytes"):
        check_target(tmp_path / ("n" * 238), overwrite=False, needed_bytes=0)


def test_write_errors(tmp_path: Path) -> None:
    full = pytest.raises(RunFailed, match=r"^disk full while writing x \(.+\): needs 2\.5 GB, [0-9.]+ .B free$")
    with full, write_errors(tmp_path / "x", 2_500_000_000):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(RunFailed, match=r"^cannot write x: Is a directory$"), write_errors(tmp_path / "x"):
        (tmp_path / "x").mkdir()
        (tmp_path / "x").write_text("")
    (tmp_path / "base").mkdir()
    copied = pytest.raises(RunFailed, match=r"^cannot write out: base: Is a directory$")
    with copied, write_errors(tmp_path / "out"):
        shutil.copyfile(tmp_path / "base", tmp_path / "out")
    with pytest.raises(RunFailed, match=r"^cannot write out: "), Staging(tmp_path / "none" / "out"):
        pass
    assert [human_size(0), human_size(12_340_000), human_size(10**9)] == ["0 bytes", "12.3 MB", "1.0 GB"]


# Replaces OUT again and again. Each new one is whole when `commit` is called.
CHILD = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from exporter.common import staging
from test_staging import fill, generation
out = Path(sys.argv[3])
if sys.argv[4] == "two renames":
    staging._exchange = lambda one, other: False
run = generation(out)
print("ready", flush=True)
while True:
    run += 1
    with staging.Staging(out, overwrite=True) as new:
        fill(new.path, run, 0.0005)
        new.commit()
"""


def test_kill(tmp_path: Path, way: str) -> None:
    out = tmp_path / "out"
    fill(out, 1)
    last = 1
    moments = random.Random(way)
    for _ in range(10):
        arguments = [sys.executable, "-c", CHILD, REPOSITORY, Path(__file__).parent, out, way]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as child:
            assert child.stdout and child.stdout.readline() == b"ready\n"
            time.sleep(moments.uniform(0, 0.03))
            child.kill()
        if way == "exchange":
            assert generation(out) >= last  # whole even before anything is repaired
        repair(out)
        assert names(tmp_path) == ["out"] and generation(out) >= last
        last = generation(out)


# Ends itself at the n-th system call that renames, before it or after it.
DIES = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from exporter.common import staging
from test_staging import fill
out, way, stop, calls = Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]), 0
def deadly(function):
    def call(*arguments, **options):
        global calls
        for step in range(2):
            calls += 1
            if calls == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            if step == 0:
                result = function(*arguments, **options)
        return result
    return call
staging._exchange = deadly(staging._exchange) if way == "exchange" else lambda one, other: False
Path.rename = deadly(Path.rename)
with staging.Staging(out, overwrite=True) as new:
    fill(new.path, 2)
    new.commit()
    staging.shutil.rmtree = deadly(staging.shutil.rmtree)
print("survived")
"""


@pytest.mark.parametrize("stop", range(1, 10))
def test_kill_around_every_rename(tmp_path: Path, way: str, stop: int) -> None:
    out, old = tmp_path / "out", tmp_path / f"out{OLD_SUFFIX}"
    fill(out, 1)
    arguments = [sys.executable, "-c", DIES, REPOSITORY, Path(__file__).parent, out, way, str(stop)]
    child = subprocess.run(arguments, capture_output=True, text=True)
    moments = 4 if way == "exchange" else 8  # the exchange or three renames, then the removal of the old one
    assert (child.returncode == 0) == (stop > moments), child.stderr
    moved_aside = way == "two renames" and stop in (2, 3)
    assert out.exists() != moved_aside and old.exists() == (way == "two renames" and stop in (2, 3, 4, 5))
    remarks = repair(out)
    assert names(tmp_path) == ["out"]
    assert generation(out) == (1 if stop == 1 or moved_aside else 2)
    assert any(remark.startswith("moved") for remark in remarks) == moved_aside
