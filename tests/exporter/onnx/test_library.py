"""The library of the kernels: compiled, found, registered, and what is said where that is not possible."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import onnxruntime
import pytest
from click.testing import CliRunner

from exporter.cli.main import cli
from exporter.common.errors import BadInput, RunFailed
from exporter.onnx import library as library_module
from exporter.onnx.library import (
    CPU_FLAGS,
    CUDA_FLAGS,
    KERNELS,
    SOURCE,
    build_operators,
    built_libraries,
    default_library,
    find_compiler,
    find_nvcc,
    register,
)

pytestmark = pytest.mark.slow

HEADER = "UNSKILL_ORT_HEADER"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder; warnings may be given again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library_module._warn_once.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """compiler(script) is the C++ compiler from now on."""

    def make(script: str) -> Path:
        program = tmp_path / "c++"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(program))
        return program

    return make


WRITES = 'for last; do :; done; echo "$@" > "$last"'  # the file that it was to make, with its arguments


def test_default_place(cache: Path, compiler: Callable[[str], Path], library: Path) -> None:
    compiler(WRITES)
    made = build_operators(cuda=False)
    assert made == default_library(False) and made.parent == cache / "unskill"
    assert made.read_text().split() == [*CPU_FLAGS, str(SOURCE), "-o", made.read_text().split()[-1]]
    # That is none that could be loaded, and would be built anew; the real one is left as it is.
    compiler("echo 'error: tried'; exit 1")
    with pytest.raises(RunFailed, match="tried"):
        build_operators(cuda=False)
    assert built_libraries() == []
    shutil.copy(library, made)
    assert build_operators(cuda=False) == made and built_libraries() == [made]
    assert [path.name for path in made.parent.iterdir()] == [made.name]
    assert default_library(True) != made


def test_another_library_in_its_place(cache: Path) -> None:
    """It can be loaded, but has no operators: taken for none, and built anew."""
    made = default_library(False)
    made.parent.mkdir(parents=True)
    subprocess.run([*find_compiler(), "-shared", "-x", "c++", os.devnull, "-o", str(made)], check=True)
    assert built_libraries() == []
    with pytest.warns(UserWarning, match="not built"):
        assert not register(onnxruntime.SessionOptions())
    # Read, not loaded: this process has the one of that name already.
    assert build_operators(cuda=False) == made and b"RegisterCustomOps" in made.read_bytes()


def test_the_name_follows_the_sources(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = default_library(False)
    kernels = shutil.copytree(KERNELS, tmp_path / "kernels")
    monkeypatch.setattr(library_module, "KERNELS", kernels)
    names = {before}
    for count, file in enumerate(sorted(KERNELS.iterdir()), start=1):
        assert default_library(False) in names and len(names) == count
        (kernels / file.name).write_text(file.read_text() + "// changed\n")
        names.add(default_library(False))
    assert len(names) == len(list(KERNELS.iterdir())) + 1


def test_a_failing_compiler_is_quoted(tmp_path: Path, compiler: Callable[[str], Path]) -> None:
    out = tmp_path / "operators.so"
    out.write_text("the one before")
    compiler("echo 'In file included from a.h' >&2; echo 'a.h:3:1: error: no such thing' >&2; echo more >&2; exit 1")
    with pytest.raises(RunFailed, match=re.escape("c++ failed: a.h:3:1: error: no such thing")):
        build_operators(out, cuda=False)
    compiler("exit 3")
    with pytest.raises(RunFailed, match=r"c\+\+ failed: exit code 3"):
        build_operators(out, cuda=False)
    assert out.read_text() == "the one before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c++", "operators.so"]


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CXX", "NVCC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"no C\+\+ compiler on PATH.*CXX"):
        build_operators(tmp_path / "operators.so")
    with pytest.raises(BadInput, match="--cuda: there is no nvcc"):
        build_operators(tmp_path / "operators.so", cuda=True)
    monkeypatch.setenv("CXX", "gcc-of-tomorrow -O1")
    with pytest.raises(BadInput, match="CXX: there is no program 'gcc-of-tomorrow'"):
        build_operators(tmp_path / "operators.so")
    monkeypatch.setenv("CXX", "g++ '")
    with pytest.raises(BadInput, match="CXX: cannot be read as a command"):
        build_operators(tmp_path / "operators.so")
    monkeypatch.setenv("NVCC", "nvcc-of-tomorrow")
    with pytest.raises(BadInput, match="NVCC: there is no program 'nvcc-of-tomorrow'"):
        build_operators(tmp_path / "operators.so")


def test_a_place_that_is_none(tmp_path: Path, compiler: Callable[[str], Path]) -> None:
    compiler(WRITES)
    with pytest.raises(BadInput, match="is a folder"):
        build_operators(tmp_path, cuda=False)
    (tmp_path / "file").touch()
    with pytest.raises(RunFailed, match=r"cannot write operators\.so"):
        build_operators(tmp_path / "file" / "operators.so", cuda=False)


def test_nvcc_is_taken_where_it_is(
    tmp_path: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = compiler(WRITES)
    monkeypatch.setenv("NVCC", str(program))
    assert build_operators(tmp_path / "a").read_text().split()[: len(CUDA_FLAGS)] == list(CUDA_FLAGS)
    assert "-DUNSKILL_CUDA" not in build_operators(tmp_path / "b", cuda=False).read_text()
    compiler("echo 'fatal : no cl.exe' >&2; exit 1")
    with pytest.raises(RunFailed, match=r"fatal : no cl\.exe; --no-cuda builds without it"):
        build_operators(tmp_path / "c")


def test_register(cache: Path, library: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert register(onnxruntime.SessionOptions(), library)
    with pytest.warns(UserWarning, match=r"not built \(unskill build-ops\)") as caught:
        assert not register(onnxruntime.SessionOptions())
        assert not register(onnxruntime.SessionOptions())
    assert len(caught) == 1 and caught[0].filename == __file__
    broken = tmp_path / "broken.so"
    broken.write_text("no shared object")
    with pytest.warns(UserWarning, match="broken.so") as caught:
        assert not register(onnxruntime.SessionOptions(), broken)
        assert not register(onnxruntime.SessionOptions(), broken)
    assert len(caught) == 1

    for_default = default_library(False)
    for_default.parent.mkdir(parents=True)
    shutil.copy(library, for_default)
    default_library(True).write_text("no shared object")  # the next one is tried
    assert register(onnxruntime.SessionOptions())


def test_without_a_home_bodies_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", mock.Mock(side_effect=RuntimeError("no home")))
    library_module._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="not built"):
        assert not register(onnxruntime.SessionOptions())


def test_kernels_for_the_cpu_alone_are_not_given_to_a_gpu(
    cache: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless they are named: each of them would be a copy to the host and back."""
    default_library(False).parent.mkdir(parents=True)
    shutil.copy(library, default_library(False))
    assert register(onnxruntime.SessionOptions())
    providers = onnxruntime.get_available_providers()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *providers])
    with pytest.warns(UserWarning, match="built for the CPU alone .unskill build-ops --cuda"):
        assert not register(onnxruntime.SessionOptions())
    assert register(onnxruntime.SessionOptions(), default_library(False))
    shutil.copy(library, default_library(True))
    assert register(onnxruntime.SessionOptions())


def test_command(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "operators.so"
    monkeypatch.chdir(tmp_path)
    given = ["build-ops", "--out", out.name, "--no-cuda", "--json"]
    done = CliRunner().invoke(cli, given, catch_exceptions=False)
    assert json.loads(done.stdout) == {"out": str(out), "cuda": False, "bytes": out.stat().st_size}
    assert register(onnxruntime.SessionOptions(), Path(out.name))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    command = [sys.executable, "-m", "exporter", "build-ops", "--out", str(out), "--no-cuda"]
    failed = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[3])
    assert failed.returncode == 2 and failed.stdout == ""
    assert (
        failed.stderr.startswith("unskill: error: there is no C++ compiler on PATH") and failed.stderr.count("\n") == 1
    )


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from exporter.cli.main import cli; cli.main(['build-ops', '--help'], standalone_mode=False); "
    code += "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--no-cuda" in result.stdout and result.stdout.strip().endswith("[]")


def test_sources_compile_without_a_warning(library: Path, tmp_path: Path) -> None:
    strict = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror"]
    subprocess.run([*find_compiler(), *strict, *CPU_FLAGS, str(SOURCE), "-o", str(tmp_path / "strict.so")], check=True)


@pytest.mark.slow
def test_cuda_compiles(tmp_path: Path, cache: Path) -> None:
    """Without a GPU too; and what a build for CUDA holds for the CPU runs."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc")
    out = tmp_path / "cuda.so"
    strict = ["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror"]
    subprocess.run([nvcc, *strict, *CUDA_FLAGS, str(SOURCE), "-o", str(out)], check=True)
    assert register(onnxruntime.SessionOptions(), out)
    exported = ctypes.CDLL(str(out))
    for name in ("neuron_draws", "neuron_adjust", "key_space_detect"):
        assert hasattr(exported, f"unskill_cuda_{name}")


TABLE = 194 * ctypes.c_void_p
GetApi = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
CreateStatus = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
TwoPointers = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


class Runtime:
    """A pretended ONNX Runtime, with functions for what registering asks of it; `says`: what they return."""

    def __init__(self, says: dict[int, int], has_api: bool = True) -> None:
        self.messages: list[str] = []
        self.calls: list[int] = []
        self.kept = [CreateStatus(self.status), *(TwoPointers(self.function(place, says)) for place in (26, 27, 28))]
        table = dict(zip((0, 26, 27, 28), self.kept, strict=True))
        self.table = TABLE(*(ctypes.cast(table.get(place), ctypes.c_void_p) for place in range(194)))
        self.get_api = GetApi(lambda version: ctypes.addressof(self.table) if has_api and version == 16 else None)
        self.base = (2 * ctypes.c_void_p)(ctypes.cast(self.get_api, ctypes.c_void_p), None)

    def status(self, code: int, message: bytes) -> int:
        self.messages.append(message.decode())
        return 99

    def function(self, place: int, says: dict[int, int]) -> Callable[[int, int], int | None]:
        def answer(first: int, second: int) -> int | None:
            self.calls.append(place)
            if place == 26:
                ctypes.c_void_p.from_address(second).value = 7  # the new domain
            return says.get(place)

        return answer

    def register(self, library: Path) -> int | None:
        """The status, as the number of its pointer; None is success."""
        function = ctypes.CDLL(str(library)).RegisterCustomOps
        function.restype = ctypes.c_void_p
        status: int | None = function(None, ctypes.byref(self.base))
        return status


@pytest.mark.parametrize("place", [26, 27, 28])
def test_each_status_is_handed_on(library: Path, tmp_path: Path, place: int) -> None:
    """A copy each, because a library that is loaded once more is the same one, and makes its domain once."""
    failing = Runtime({place: 1234})
    assert failing.register(shutil.copy(library, tmp_path / "copy.so")) == 1234
    assert failing.calls[-1] == place
    if place != 28:
        assert failing.register(tmp_path / "copy.so") == 99  # and not the status that is the caller's by now
        assert "no domain" in failing.messages[-1]


def test_the_domain_is_made_once_and_for_one_runtime(library: Path, tmp_path: Path) -> None:
    copy = shutil.copy(library, tmp_path / "copy.so")
    first, second = Runtime({}), Runtime({})
    assert first.register(copy) is None and first.register(copy) is None
    assert first.calls == [26, 27, 27, 27, 27, 28, 28]
    assert second.register(copy) == 99 and not second.calls
    assert "another ONNX Runtime" in second.messages[-1]


def test_a_runtime_that_is_too_old_is_left_alone(library: Path, tmp_path: Path) -> None:
    old = Runtime({}, has_api=False)
    assert old.register(shutil.copy(library, tmp_path / "copy.so")) is None and not old.calls


def test_places_in_the_table_are_the_headers(tmp_path: Path) -> None:
    """Places and fields of ort_abi.h, against the onnxruntime_c_api.h that UNSKILL_ORT_HEADER names."""
    header = os.environ.get(HEADER)
    if header is None:
        pytest.skip(f"needs onnxruntime_c_api.h, named by {HEADER}")
    text = (KERNELS / "ort_abi.h").read_text()
    places = {name: int(place) for name, place in re.findall(r" (\w+)\([^{}]*\{\s*(?:return )?at<.*?>\((\d+)\)", text)}
    struct = text[text.index("struct OrtCustomOp {") : text.index('}  // extern "C"')]
    fields = re.findall(r"(?:\(\*|uint32_t )(\w+)[);]", struct)
    assert len(places) == 13 and len(fields) == 19
    claims = [f"offsetof(OrtApi, {name}) == {place} * sizeof(void*)" for name, place in places.items()]
    claims += [f"offsetof(OrtCustomOp, {name}) == {place} * sizeof(void*)" for place, name in enumerate(fields)]
    claims += ["offsetof(OrtApiBase, GetApi) == 0", "ORT_FAIL == 1", "ORT_INVALID_ARGUMENT == 2"]
    claims += [f"ONNX_TENSOR_ELEMENT_DATA_TYPE_{n} == {v}" for n, v in (("FLOAT", 1), ("INT64", 7), ("BOOL", 9))]
    claims += [
        "INPUT_OUTPUT_REQUIRED == 0",
        "OrtMemTypeDefault == 0",
        "sizeof(ONNXTensorElementDataType) == sizeof(int)",
    ]
    source = tmp_path / "places.cc"
    source.write_text(
        f'#include <cstddef>\n#include "{header}"\n' + "".join(f'static_assert({claim}, "");\n' for claim in claims)
    )
    subprocess.run([*find_compiler(), "-std=c++17", "-fsyntax-only", str(source)], check=True)
