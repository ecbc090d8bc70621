"""Runs Python programs that nobody has read, such as a model's answers to coding tasks. Linux, x86_64 or aarch64.

This file is also the script that a fresh interpreter is started with: it confines itself, for good, and only then
looks at the program. The same holds for root and for any other user; where a part is missing, nothing runs.

- Landlock: it reads Python's installation and the system's libraries, and writes in a folder of its own.
- seccomp: SYSTEM_CALLS alone. No process or thread (that a kill could miss), socket, signal, change of mode or limit.
- rlimits for memory, file sizes, open files and CPU time; wall-clock time and disk space are watched from outside.

Not held: it can ask (stat) whether any file exists, a bug in the kernel may let it out, and a program written to find
the token in its own process can claim to have passed. Not repeatable: hashes are seeded at random.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from subprocess import Popen
from tempfile import TemporaryDirectory, TemporaryFile
from types import ModuleType

if __name__ != "__main__":  # the script runs without the package
    from exporter.common.errors import BadInput, RunFailed

# What CPython needs, with the numbers of x86_64 and aarch64. Left out although they look harmless: chmod and utime, in
# which Landlock has no say; prlimit and fcntl, which reach other processes (F_SETOWN: any signal); ftruncate, with
# which STARTED could be taken back.
SYSTEM_CALLS = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, lseek 8 62, close 3 57, open 2 -,
openat 257 56, stat 4 -, lstat 6 -, fstat 5 80, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48,
faccessat2 439 439, getdents64 217 61, getcwd 79 17, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38,
renameat2 316 276, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, poll 7 -, ppoll 271 73, select 23 -,
pselect6 270 72, mmap 9 222, mprotect 10 226, munmap 11 215, mremap 25 216, brk 12 214, madvise 28 233,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, sigaltstack 131 132, restart_syscall 219 128,
getpid 39 172, getppid 110 173, gettid 186 178, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177,
time 201 -, gettimeofday 96 169, clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115,
nanosleep 35 101, times 100 153, getrusage 98 165, uname 63 160, sysinfo 99 179, getrandom 318 278, futex 202 98,
sched_yield 24 124, sched_getaffinity 204 123, exit 60 93, exit_group 231 94
"""
IOCTL, FIOCLEX = (16, 29), 0x5451  # with this argument alone: tempfile and whoever gives open an opener
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
BPF_LOAD, BPF_EQUAL, BPF_RETURN = 0x20, 0x15, 0x06
SECCOMP_RET = (0x7FFF0000, 0x00050000 | errno.ENOSYS, 0x80000000)  # allow, refuse, kill the process
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # landlock_*, on every architecture
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8, 1 << 14
LANDLOCK_VERSION = 3  # TRUNCATE; before it, opening a readable file could empty it
HANDLED = (1 << 15) - 1  # every right on files of that version: what no rule gives is refused
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
START_SECONDS = 60.0  # for the interpreter
STARTED = b"+"
PROBE = """
import os, socket
for act in os.fork, socket.socket, lambda: os.listdir(".."), lambda: open("../probe", "w"), lambda: bytearray(2**30):
    try:
        raise SystemError(f"{act} was let through: {act()}")
    except (OSError, MemoryError):
        open("own", "w").close()
"""


@dataclass(frozen=True)
class Limits:
    """Of one program. A number of processes is not among them: there is one, with one thread."""

    seconds: float = 10.0  # wall clock, from the program's first line on
    memory: int = 1 << 30  # bytes of address space, of which the interpreter takes some 30 MB
    file_size: int = 1 << 20  # bytes of any one file and of stderr; stdout is thrown away
    disk: int = 16 << 20  # bytes of all its files, looked at every 10 ms; not of removed ones still open or mapped
    stderr: int = 2000  # bytes of the end of stderr that are kept


@dataclass(frozen=True)
class Outcome:
    """`reason`: passed, failed, ended early, timed out, out of memory, wrote too much or killed by signal N (name)."""

    passed: bool  # its last line was reached: sys.exit(0) and os._exit(0) before it do not count
    reason: str
    stderr: str  # the end of it, with ? for what cannot be printed


def require() -> None:
    """Try the confinement on a small program. BadInput where this system does not enforce it."""
    system = os.uname().machine if sys.platform == "linux" else sys.platform
    try:
        outcome = run(PROBE) if system in ARCHITECTURES else Outcome(False, f"this is {system}", "")
    except RunFailed as error:
        outcome = Outcome(False, str(error), "")
    if not outcome.passed:
        found = " ".join([outcome.reason, *outcome.stderr.splitlines()[-1:]])
        raise BadInput(
            f"--allow-code-execution: programs cannot be confined here ({found}). It takes Linux 6.2 or newer on "
            "x86_64 or aarch64, with Landlock and seccomp not held back by a container; leave it out or run it there"
        )


def run(source: str, limits: Limits = Limits()) -> Outcome:
    """Run the program; its process and its folder are gone on return. RunFailed where it could not even be started."""
    token = os.urandom(16).hex()
    request = {"token": token, "parent": os.getpid(), "limits": asdict(limits)}
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", os.path.abspath(__file__)]
    try:
        # Files rather than pipes: they neither fill up nor wait for anybody.
        with TemporaryDirectory() as folder, TemporaryFile() as task, TemporaryFile() as reply, TemporaryFile() as log:
            task.write(json.dumps(request).encode() + b"\n" + source.encode("utf-8", "surrogatepass"))
            task.seek(0)
            process = Popen(command, stdin=task, stdout=reply, stderr=log, cwd=folder, env={}, start_new_session=True)
            try:
                stopped = _wait(process, reply.fileno(), folder, limits)
            finally:
                process.kill()
                process.wait()
            log.seek(max(0, os.fstat(log.fileno()).st_size - limits.stderr))
            stderr = log.read(limits.stderr).decode("utf-8", "replace")
            started = os.fstat(reply.fileno()).st_size > 0  # its content could be overwritten, its size stays
            reply.seek(0)
            reached_end = reply.read(64) == STARTED + token.encode()
    except OSError as error:
        raise RunFailed(f"no program can be run: {error}") from error
    stderr = "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in stderr)
    status, last = process.returncode, "".join(stderr.splitlines()[-1:])
    if not started:
        raise RunFailed(f"no program can be run confined: {last or stopped or f'status {status}'}")
    reason = stopped or ("passed" if reached_end else "ended early")
    if not stopped and status > 0:
        reason = "out of memory" if last.startswith("MemoryError") else "failed"
    elif not stopped and status < 0:
        reason = f"killed by signal {-status} ({signal.strsignal(-status)})"
    return Outcome(reason == "passed", reason, stderr)


def _wait(process: Popen[bytes], reply: int, folder: str, limits: Limits) -> str:
    """Wait for the program's end, or return what it must be killed for."""
    started, deadline = False, time.monotonic() + START_SECONDS
    while process.poll() is None:
        if not started and os.fstat(reply).st_size:
            started, deadline = True, time.monotonic() + limits.seconds
        if time.monotonic() > deadline:
            return "timed out"
        if _written(folder) > limits.disk:
            return "wrote too much"
        time.sleep(0.01)
    return ""


def _written(folder: str) -> int:
    """Bytes of the files in a folder, of each at least a block."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # removed meanwhile
                total += max(entry.stat(follow_symlinks=False).st_size, 4096)
    return total


def _launch() -> None:
    """Confine this process, then run a program. stdin: a line of JSON and the program; stdout: STARTED, the token."""
    with open(0, "rb", closefd=False) as stdin:  # not sys.stdin, which would keep the token in its buffer
        request, program = json.loads(stdin.readline()), stdin.read()
    reply, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)  # or the token could be read again
    os.dup2(null, 1)
    os.environ.clear()  # of LC_CTYPE, which Python itself may have set
    _confine(Limits(**request["limits"]))
    if os.getppid() != request["parent"]:  # it ended before its end could be a signal
        os._exit(1)
    os.write(reply, STARTED)

    module = ModuleType("__main__")
    sys.modules["__main__"], sys.argv[:] = module, ["program.py"]
    sys.excepthook = lambda kind, error, trace: traceback.print_exception(  # without the two frames of this file
        kind, error, trace and trace.tb_next and trace.tb_next.tb_next
    )
    exec(compile(program.decode("utf-8", "surrogatepass"), "program.py", "exec", dont_inherit=True), module.__dict__)
    os.write(reply, request["token"].encode())
    os._exit(0)


def _confine(limits: Limits) -> None:
    """Confine this process, which must have one thread. Nothing of it can be undone: the last step forbids that."""
    most_of = {"AS": limits.memory, "FSIZE": limits.file_size, "CPU": int(limits.seconds) + 2, "NOFILE": 64, "CORE": 0}
    for name, most in most_of.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))
    libc = ctypes.CDLL(None, use_errno=True)
    _call("prctl", libc.prctl, PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _call("prctl", libc.prctl, PR_SET_DUMPABLE, 0, 0, 0, 0)  # a limit of 0 does not stop cores that go to a program
    _call("prctl", libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    if _call("Landlock", libc.syscall, CREATE_RULESET, 0, 0, 1) < LANDLOCK_VERSION:
        raise OSError(errno.ENOSYS, "Landlock is too old")
    handled = ctypes.c_uint64(HANDLED)
    ruleset = _call("Landlock", libc.syscall, CREATE_RULESET, ctypes.addressof(handled), 8, 0)
    rights = dict.fromkeys((*sys.path, os.path.join(sys.base_prefix, "lib"), *LIBRARIES), READ_FILE | READ_DIR)
    rights |= {"/dev/urandom": READ_FILE, os.devnull: READ_FILE | WRITE_FILE}
    rights["."] = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | MAKE_REG | REMOVE_FILE
    for path, right in rights.items():
        if os.path.exists(path):
            handle = os.open(path, os.O_PATH)
            right = right if os.path.isdir(path) else right & ~READ_DIR  # what a file cannot have is an error
            rule = ctypes.create_string_buffer(struct.pack("=Qi", right, handle), 12)
            _call("Landlock", libc.syscall, ADD_RULE, ruleset, 1, ctypes.addressof(rule), 0)
            os.close(handle)
    _call("Landlock", libc.syscall, RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    steps = _seccomp_filter(os.uname().machine)
    code = ctypes.create_string_buffer(steps, len(steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps) // 8, ctypes.addressof(code)), 16)
    _call("seccomp", libc.prctl, PR_SET_SECCOMP, 2, ctypes.addressof(program), 0, 0)


def _call(name: str, function: Callable[..., int], *arguments: int) -> int:
    result = function(*map(ctypes.c_long, arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def _seccomp_filter(machine: str) -> bytes:
    """The BPF program, 8 bytes a step. ENOSYS for what it does not allow: the C library then tries older calls."""
    column = list(ARCHITECTURES).index(machine)
    allow, refuse, kill = ((BPF_RETURN, 0, 0, result) for result in SECCOMP_RET)
    # Another architecture's calls have other numbers. Those of x32 have a bit that no allowed one has.
    steps = [(BPF_LOAD, 0, 0, 4), (BPF_EQUAL, 1, 0, ARCHITECTURES[machine]), kill, (BPF_LOAD, 0, 0, 0)]
    for number in (call.split()[1 + column] for call in SYSTEM_CALLS.split(",")):
        if number != "-":
            steps += [(BPF_EQUAL, 0, 1, int(number)), allow]
    steps += [(BPF_EQUAL, 1, 0, IOCTL[column]), refuse]
    steps += [(BPF_LOAD, 0, 0, 24), (BPF_EQUAL, 0, 1, FIOCLEX), allow, refuse]  # 24: of the second argument
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


if __name__ == "__main__":
    _launch()
