"""The kernels of the custom operators: one shared object for every ONNX Runtime (tested with 1.20 to 1.32).

Building it takes a C++17 compiler and nothing of ONNX Runtime. With nvcc it also has CUDA kernels. The CPU kernels are
always in it, because a session fails where an operator is registered but has no kernel, instead of taking its body.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.common.errors import BadInput, RunFailed, first_line
from exporter.common.files import write_errors

if TYPE_CHECKING:
    import onnxruntime

CUDA = "CUDAExecutionProvider"
KERNELS = Path(__file__).with_name("kernels")
SOURCE = KERNELS / "unskill_ops.cu"
HEADERS = ("ort_abi.h", "unskill_cuda.h", "unskill_math.h")
# Without contraction into fused multiply-add, or decisions would differ from those of the bodies.
CPU_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-fvisibility=hidden", "-x", "c++")
# Machine code for the generations of T4, A100 and H100, and PTX, which newer ones compile when they load it.
CUDA_FLAGS = (
    *("-std=c++17", "-O3", "--fmad=false", "-DUNSKILL_CUDA", "-shared", "-cudart", "static"),
    *("-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off"),
    *("-gencode", "arch=compute_75,code=sm_75"),
    *("-gencode", "arch=compute_80,code=sm_80", "-gencode", "arch=compute_90,code=sm_90"),
    *("-gencode", "arch=compute_90,code=compute_90"),
)


def build_operators(out: Path | None = None, cuda: bool | None = None) -> Path:
    """Compile the kernels; returns the file.

    `out`: the file, replaced in one step; by default one in the user's cache folder (`default_library`), which is kept
    if it can be loaded. `cuda`: with CUDA kernels too; by default if there is an nvcc.

    Raises:
        BadInput: No compiler, or a folder for `out`.
        RunFailed: The compiler failed, or the file can't be written.
    """
    nvcc = None if cuda is False else find_nvcc()
    if cuda and nvcc is None:
        raise BadInput("--cuda: there is no nvcc on PATH; install the CUDA toolkit, or name its nvcc by NVCC")
    compiler = [nvcc, *CUDA_FLAGS] if nvcc else [*find_compiler(), *CPU_FLAGS]
    # Absolute: a bare name is looked for where the system keeps libraries, not in the working directory.
    library = default_library(nvcc is not None) if out is None else out.absolute()
    if out is None and loads(library):
        return library
    if library.is_dir():
        raise BadInput(f"{library}: is a folder, but should be the file to write")
    with write_errors(library):
        library.parent.mkdir(parents=True, exist_ok=True)
        # Beside the file: only within one file system can it be put in place in one step.
        with tempfile.TemporaryDirectory(prefix=".build-ops-", dir=library.parent) as folder:
            made = Path(folder) / library.name
            _compile([*compiler, str(SOURCE), "-o", str(made)])
            os.replace(made, library)
    return library


def register(session_options: onnxruntime.SessionOptions, library: Path | None = None) -> bool:
    """Have sessions with these options run the kernels; returns whether they will.

    `library`: what `build_operators` returned; by default what it put into the user's cache folder. If that is missing
    or can't be loaded, one warning says so, and sessions take the operators' bodies: same results, slower. The same
    where this ONNX Runtime has CUDA and the folder only a library without, for sessions on a GPU would copy to the CPU
    and back at each operator; give `library` to register it anyway.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    failures = (RuntimeError, state.Fail, state.InvalidArgument, state.NoSuchFile, state.RuntimeException)
    reason = "they are not built (unskill build-ops)"
    found = built_libraries() if library is None else [library]
    on_cpu_alone = library is None and found and found == [default_library(False)]
    if on_cpu_alone and CUDA in onnxruntime.get_available_providers():
        found, reason = [], "they are built for the CPU alone (unskill build-ops --cuda)"
    for each in found:
        try:
            session_options.register_custom_ops_library(str(each.absolute()))
        except failures as error:
            reason = first_line(error)
        else:
            return True
    _warn_once(f"unskill: the operators' bodies are used instead of their kernels: {reason}")
    return False


def default_library(cuda: bool) -> Path:
    """The path of the library in the user's cache folder; its name changes with sources, flags and machine.

    Raises:
        BadInput: The user has no home folder.
    """
    parts = [(KERNELS / name).read_bytes() for name in (SOURCE.name, *HEADERS)]
    parts += [repr((CUDA_FLAGS if cuda else CPU_FLAGS, sys.platform, platform.machine())).encode()]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise BadInput("there is no home folder to keep the library in; give --out, or set XDG_CACHE_HOME") from error
    return cache / "unskill" / f"libunskill_ops-{'cuda' if cuda else 'cpu'}-{digest}.so"


def find_compiler() -> list[str]:
    """The command of a C++ compiler: CXX, else g++, clang++ or c++.

    Raises:
        BadInput: There is none.
    """
    try:
        given = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise BadInput(f"CXX: cannot be read as a command: {error}") from error
    if given:
        if shutil.which(given[0]) is None:
            raise BadInput(f"CXX: there is no program '{given[0]}'")
        return given
    found = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if found is None:
        raise BadInput("there is no C++ compiler on PATH; install g++ or clang++, or name one by CXX")
    return [found]


def find_nvcc() -> str | None:
    """The CUDA compiler: NVCC, else nvcc on PATH, else None.

    Raises:
        BadInput: NVCC names no program.
    """
    given = os.environ.get("NVCC")
    found = shutil.which(given or "nvcc")
    if given and found is None:
        raise BadInput(f"NVCC: there is no program '{given}'")
    return found


def built_libraries() -> list[Path]:
    """The libraries in the cache folder that can be loaded, the one with CUDA kernels first."""
    try:
        return [each for each in (default_library(True), default_library(False)) if loads(each)]
    except BadInput:
        return []


def loads(library: Path) -> bool:
    """Whether this machine can load the file and it has our operators: a cache may be damaged or of another system."""
    try:
        return hasattr(ctypes.CDLL(str(library)), "RegisterCustomOps")
    except OSError:
        return False


def _compile(command: list[str]) -> None:
    """Run a compiler; its messages are in English, so that the line to quote can be found.

    Raises:
        BadInput: It can't be started.
        RunFailed: It failed.
    """
    english = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", env=english
        )
    except OSError as error:
        raise BadInput(f"{command[0]}: cannot be started: {error.strerror or error}") from error
    if done.returncode == 0:
        return
    lines = [line.strip() for line in f"{done.stderr}\n{done.stdout}".splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(error|fatal)\b", line, re.IGNORECASE)]
    quoted = [*errors, *lines, f"exit code {done.returncode}"][0]
    hint = "; --no-cuda builds without it" if "-DUNSKILL_CUDA" in command else ""
    raise RunFailed(f"{Path(command[0]).name} failed: {quoted}{hint}")


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)
