"""What programs can and cannot do in the sandbox. Hostile ones are also run without it, where they must succeed."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from exporter.common.errors import BadInput
from exporter.evaluation import sandbox
from exporter.evaluation.sandbox import Limits, Outcome, run

REPOSITORY = Path(__file__).resolve().parents[3]
PASSED = Outcome(True, "passed", "")


# Not by `require`: were the sandbox to leak, that would refuse and all of this be skipped.
POSSIBLE = (
    sys.platform == "linux"
    and platform.machine() in sandbox.ARCHITECTURES
    and ctypes.CDLL(None).syscall(444, None, 0, 1) >= 3  # the version of Landlock
)
pytestmark = pytest.mark.skipif(not POSSIBLE, reason="needs Linux 6.2 or newer with Landlock, on x86_64 or aarch64")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the programs' folders are made. After every test, no process and no file is left there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    folder.with_suffix(".py").symlink_to(sandbox.__file__)  # a name by which this test's processes are known
    monkeypatch.setattr(sandbox, "__file__", str(folder.with_suffix(".py")))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert processes_of(folder) == [] and list(folder.iterdir()) == []


def processes_of(folder: Path) -> list[int]:
    """Those that run the test's launcher, whose folder no other user than root can ask for, or are in the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile, or another user's
            launched = f"\0{folder}.py\0" in (process / "cmdline").read_text(errors="replace")
            if launched or os.readlink(process / "cwd").startswith(str(folder)):  # also "... (deleted)"
                found.append(int(process.name))
    return found


def unconfined(source: str, folder: Path) -> str:
    """What the program writes to stderr without the sandbox."""
    command = [sys.executable, "-I", "-S", "-c", source]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True).stderr


def attempts(*actions: str) -> str:
    """A program that tells on stderr which of the actions (expressions) succeed."""
    program = "import fcntl, os, resource, signal, socket, sys\ndef tell(word): print(word, file=sys.stderr)\n"
    return program + "".join(f"try: {act}\nexcept OSError: tell('no')\nelse: tell('yes')\n" for act in actions)


def refused_only_inside(folder: Path, *actions: str) -> None:
    assert run(attempts(*actions)) == Outcome(True, "passed", "no\n" * len(actions))
    assert unconfined(attempts(*actions), folder) == "yes\n" * len(actions)


@pytest.mark.parametrize(
    ("source", "reason", "stderr"),
    [
        ("assert 'Straße ☃'[-1] == '\\u2603' and ord('😀') == 0x1F600", "passed", ""),
        ("import sys; assert (__name__, sys.argv) == ('__main__', ['program.py'])", "passed", ""),
        ("def f(x: int): 0\nassert f.__annotations__['x'] is int", "passed", ""),  # no __future__ of the launcher's
        ("import sys; print('\x1b[2J', file=sys.stderr)", "passed", "?[2J\n"),
        ("import os, ctypes; assert not os.environ and not ctypes.CDLL(None).getenv(b'PATH')", "passed", ""),
        ("import os; assert os.lseek(0, 0, 0) == 0 and os.read(0, 99) == b''", "passed", ""),  # no token there
        ("import math; assert math.sqrt(4) == 3", "failed", "AssertionError\n"),
        ("def f():\n  raise ValueError('as expected')\nf()", "failed", "ValueError: as expected\n"),
        ("def f(:", "failed", "SyntaxError: invalid syntax\n"),
        ("'\ud800'", "failed", "UnicodeEncodeError: "),
        ("1\0", "failed", "Error: source code"),
        ("(" * 1000, "failed", "SyntaxError: "),
        ("input()", "failed", "EOFError"),
        ("import sys\nsys.exit(3)", "failed", ""),
        ("import sys\nsys.exit(0)\nassert False", "ended early", ""),
        ("raise SystemExit", "ended early", ""),
        ("import os\nos._exit(0)", "ended early", ""),
        ("import os\nfor n in range(3, 9):\n  try: os.write(n, b'+0123')\n  except OSError: 0\nos._exit(0)",
         "ended early", ""),
        ("import ctypes\nctypes.string_at(0)", "killed by signal 11 (Segmentation fault)", ""),
        ("bytearray(4 << 30)", "out of memory", "MemoryError\n"),
        ("import threading\nthreading.Thread(target=print).start()", "failed", "can't start new thread\n"),
        ("for _ in range(100): print('x' * 10**6)", "passed", ""),
        ("import sys\nwhile True: sys.stderr.write('x' * 10**5)", "failed", "xxx"),
        ("open('a', 'wb').write(bytes(1 << 20))", "passed", ""),
        ("open('a', 'wb').write(bytes(2 << 20))", "failed", "File too large"),
        ("n = 0\nwhile True:\n  n += 1\n  open(str(n), 'wb').write(bytes(1 << 20))", "wrote too much", ""),
        ("n = 0\nwhile True:\n  n += 1\n  open(str(n), 'wb').close()", "wrote too much", ""),
    ],
)  # fmt: skip
def test_outcome(source: str, reason: str, stderr: str) -> None:
    outcome = run(source)
    assert outcome.reason == reason and stderr in outcome.stderr and outcome.passed == (reason == "passed")
    assert str(REPOSITORY) not in outcome.stderr and len(outcome.stderr) <= 2000  # nor the launcher's frames


def test_standard_library() -> None:
    modules = "bisect, cmath, collections, copy, datetime, decimal, fractions, functools, hashlib, heapq, itertools"
    modules += ", json, math, operator, pathlib, random, re, statistics, string, sys, tempfile, time, typing, unittest"
    source = f"import {modules}\ntime.sleep(0.01); random.random(); datetime.datetime.now(); hashlib.md5(b'')\n"
    source += "with tempfile.NamedTemporaryFile('w+') as f: f.write('ä'); f.seek(0); assert f.read() == 'ä'\n"
    source += "pathlib.Path('a').write_text('b'); pathlib.Path('a').rename('c'); pathlib.Path('c').unlink()"
    assert run(source) == PASSED


@pytest.mark.parametrize("source", ["while True: pass", "import time\ntime.sleep(60)", "while True: print('x' * 999)"])
def test_time(source: str) -> None:
    start = time.monotonic()
    assert run(f"import signal\nsignal.signal(15, signal.SIG_IGN)\n{source}", Limits(0.5)).reason == "timed out"
    assert 0.5 < time.monotonic() - start < 20


def test_memory() -> None:
    assert run("bytearray(200 << 20)", Limits(memory=100 << 20)).reason == "out of memory"
    assert run("bytearray(200 << 20)") == PASSED


def test_processes(temporary: Path, tmp_path: Path) -> None:
    bomb = (
        "import os, sys\nmade = 0\nfor _ in range(20):\n  try:\n    if os.fork() == 0: os._exit(0)\n"
        "    made += 1\n  except OSError: pass\nprint(made, file=sys.stderr)"
    )
    assert run(bomb).stderr == "0\n" and unconfined(bomb, tmp_path) == "20\n"
    refused_only_inside(tmp_path, f"os.posix_spawn({sys.executable!r}, ['python', '-c', ''], {{}})")
    daemon = "import os, time\nif os.fork() == 0:\n  os.setsid()\n  os.fork()\n  time.sleep(600)\n"
    assert run(daemon).reason == "failed" and processes_of(temporary) == []
    unconfined("import os\nfor n in 0, 1, 2: os.close(n)\n" + daemon, temporary)
    assert processes_of(temporary)  # what survives is found
    while left := processes_of(temporary):
        for process in left:
            os.kill(process, signal.SIGKILL)


def test_files_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, other, own = tmp_path / "secret", tmp_path / "other", tmp_path / "own"
    secret.write_text("hf_token")
    own.mkdir()
    actions = f"""
        open({str(secret)!r}).read()
        open("../secret" if os.path.exists("../secret") else "../../secret").read()
        os.listdir({str(tmp_path)!r})
        os.listdir("..")
        open("/proc/self/environ").read()
        open("/proc/%s/environ" % os.getppid()).read()
        open({str(other)!r}, "w")
        open("../new", "w")
        (os.symlink({str(secret)!r}, "link"), open("link", "a"))
        (os.link({str(secret)!r}, "hard"), open("hard").read())
        os.chmod({str(secret)!r}, 0o644)
        os.utime({str(secret)!r})
        os.truncate({str(secret)!r}, 3)
        os.open({str(secret)!r}, os.O_RDONLY | os.O_TRUNC)
        (open("mine", "w").close(), os.rename("mine", {str(tmp_path / "moved")!r}))
        os.unlink({str(secret)!r})
    """.strip().splitlines()
    refused_only_inside(own, *map(str.strip, actions))
    assert other.exists() and not secret.exists()  # so it was without the sandbox

    def planted(command: list[str], cwd: str, **options: object) -> subprocess.Popen[bytes]:
        os.symlink(other, f"{cwd}/link")  # a program cannot make one
        return subprocess.Popen(command, cwd=cwd, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(sandbox, "Popen", planted)
    source = attempts("open('link').read()", "open('link', 'w')", "os.unlink('link')", "open('link', 'w')")
    assert run(source).stderr == "no\nno\nyes\nyes\n"


def test_network_and_other_processes(tmp_path: Path) -> None:
    kinds = "INET, socket.SOCK_STREAM", "INET, socket.SOCK_DGRAM", "UNIX", "NETLINK, socket.SOCK_RAW"
    refused_only_inside(
        tmp_path,
        *(f"socket.socket(socket.AF_{kind})" for kind in kinds),
        "socket.socketpair()",
        "os.kill(os.getppid(), 0)",
        "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
        "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CORE)",
        "os.sched_setaffinity(os.getppid(), os.sched_getaffinity(os.getppid()))",
        "resource.setrlimit(resource.RLIMIT_CPU, resource.getrlimit(resource.RLIMIT_CPU))",
        "fcntl.ioctl(os.pipe()[0], 0x541B, bytes(4))",  # FIONREAD; for all but the one that is allowed
    )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86_64")
def test_system_calls_by_number() -> None:
    calls = {"fork": 57, "vfork": 58, "clone": 56, "clone3": 435, "execve": 59, "execveat": 322, "ptrace": 101}
    calls |= {"prctl": 157, "seccomp": 317, "mount": 165, "unshare": 272, "setns": 308, "bpf": 321, "keyctl": 250}
    calls |= {"io_uring_setup": 425, "process_vm_writev": 311, "memfd_create": 319, "shmget": 29, "openat2": 437}
    calls |= {"x32 socket": 0x40000000 + 41, "x32 fork": 0x40000000 + 57, "x32 execve": 0x40000000 + 520}
    source = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    source += f"for name, n in {calls}.items():\n  result = libc.syscall(ctypes.c_long(n), 0, 0, 0, 0, 0, 0)\n"
    assert run(source + "  assert (result, ctypes.get_errno()) == (-1, 38), name\n") == PASSED
    code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20 (i386: getpid); int 0x80; ret
    source = f"import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write({code})\n"
    source += "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()"
    assert re.match("killed by signal (31|11) ", run(source).reason)  # 11 where the kernel has no i386


@pytest.mark.parametrize("header", ["x86_64-linux-gnu/asm/unistd_64.h", "asm-generic/unistd.h"])
def test_numbers_are_those_of_the_headers(header: str) -> None:
    path = Path("/usr/include", header)
    if not path.exists():
        pytest.skip(f"{path} is not there")
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", path.read_text(), re.MULTILINE))
    known.setdefault("newfstatat", known.get("fstatat", ""))
    column = 0 if "x86_64" in header else 1
    numbers = {words.split()[0]: words.split()[1 + column] for words in sandbox.SYSTEM_CALLS.split(",")}
    numbers |= {"ioctl": str(sandbox.IOCTL[column]), "landlock_restrict_self": str(sandbox.RESTRICT_SELF)}
    assert {name: known.get(name, "-") for name in numbers} == numbers


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_wait", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run("import time\ntime.sleep(600)")


def python(source: str, temporary: Path) -> subprocess.Popen[str]:
    start = f"import sys, tempfile\nsys.path.insert(0, {str(REPOSITORY)!r})\ntempfile.tempdir = {str(temporary)!r}\n"
    start += "from exporter.common import errors\nfrom exporter.evaluation import sandbox\n"
    start += f"sandbox.__file__ = {sandbox.__file__!r}\n"
    return subprocess.Popen([sys.executable, "-c", start + source], stdout=subprocess.PIPE, text=True)


def test_killed_parent(temporary: Path) -> None:
    deadline = time.monotonic() + 30
    with python("sandbox.run('import time\\ntime.sleep(600)', sandbox.Limits(600))", temporary) as parent:
        while not processes_of(temporary) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(1)  # for the launcher
        found = processes_of(temporary)
        parent.kill()
    assert found
    while processes_of(temporary) and time.monotonic() < deadline:
        time.sleep(0.02)
    for folder in temporary.iterdir():
        folder.rmdir()


# Takes one system call from its own process and those it starts: Landlock's first, or prctl(PR_SET_SECCOMP, ...).
WITHOUT = """
import ctypes, struct
libc = ctypes.CDLL(None)
steps = [(0x20, 0, 0, {offset}), (0x15, 0, 1, {value}), (0x06, 0, 0, 0x50026), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, ctypes.c_char_p(struct.pack("@HP", 4, ctypes.addressof(code))), 0, 0) == 0
try:
    sandbox.require()
except errors.BadInput as error:
    print(error)
try:
    sandbox.run("open('/dev/stderr', 'w').write('ran')")
except errors.RunFailed as error:
    print(error)
"""


@pytest.mark.parametrize(("missing", "offset", "value"), [("Landlock", 0, 444), ("seccomp", 16, 22)])
def test_no_weaker_sandbox(temporary: Path, missing: str, offset: int, value: int) -> None:
    with python(WITHOUT.format(offset=offset, value=value), temporary) as process:
        refusal, failure = process.communicate(timeout=60)[0].splitlines()
    assert refusal.startswith("--allow-code-execution: programs cannot be confined here (") and "Linux 6.2" in refusal
    assert f"{missing}: Function not implemented" in refusal and f"{missing}: " in failure


@pytest.mark.parametrize(
    ("where", "name", "value", "reason"),
    [
        (sys, "platform", "darwin", "this is darwin"),
        (os, "uname", lambda: SimpleNamespace(machine="riscv64"), "this is riscv64"),
        (sys, "executable", "/none", r"no program can be run: \[Errno 2\] .*"),
        (sandbox, "PROBE", "import os; os.fork()", r"failed OSError: \[Errno 38\] .*"),
        (sandbox, "PROBE", "raise SystemExit", "ended early"),
    ],
)
def test_require(where: object, name: str, value: object, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.require()
    monkeypatch.setattr(where, name, value)
    with pytest.raises(BadInput, match=rf"^--allow-code-execution: programs cannot be confined here \({reason}\)\. "):
        sandbox.require()
