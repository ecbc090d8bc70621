"""An ONNX folder beside a checkpoint: whole, of this checkpoint, and computing the same."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from exporter.onnx.settings import OnnxSettings
from exporter.onnx.writing import write_onnx
from exporter.verification.onnx import check_again
from exporter.verification.run import VerifySettings, verify
from tests.corruptions import CORRUPTIONS, Corruption, failed, has_onnx, try_one
from tests.damage import copy_of, edit, onnx_of, onnx_record, put, set_
from tests.fresh_loading import FreshLoading
from tests.tiny import Exported, one_thread

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(tiny: Callable[..., Exported], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its ONNX folder beside it."""
    checkpoint = copy_of(tiny("llama").checkpoint, tmp_path_factory.mktemp("pair") / "checkpoint")
    with one_thread(), mock.patch("exporter.onnx.writing.built_libraries", lambda: []):
        write_onnx(OnnxSettings(str(checkpoint), onnx_of(checkpoint)), lambda text: None)
    return checkpoint


@contextmanager
def watched(folders: list[Path]) -> Iterator[list[str]]:
    """What is opened for writing, linked or made in these folders while this holds."""
    written: list[str] = []
    active = True

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if not active or event not in ("open", "os.link", "os.symlink", "os.mkdir", "os.rename"):
            return
        path = arguments[1] if event in ("os.link", "os.symlink", "os.rename") else arguments[0]
        writes = event != "open" or bool(int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and isinstance(path, str | os.PathLike) and Path(path).parent in folders:
            written.append(f"{event} {path}")

    sys.addaudithook(look)  # for good: there is no way to take one away
    try:
        yield written
    finally:
        active = False


@pytest.fixture
def copied_pair(pair: Path, tmp_path: Path) -> Path:
    copy_of(onnx_of(pair), tmp_path / "checkpoint-onnx")
    return copy_of(pair, tmp_path / "checkpoint")


def test_whole(pair: Path) -> None:
    folders = [each for each in (onnx_of(pair), *onnx_of(pair).rglob("*")) if each.is_dir()]
    with watched(folders) as written:
        found = verify(VerifySettings(str(pair)), lambda text: None)
    assert written == []  # not even for a moment: another verify may look, and this one may be killed
    checks = {check["name"]: check for check in found["checks"] if check["name"].startswith("onnx")}
    assert found["ok"] and len(checks) == 4 and all(check["ok"] for check in checks.values()), checks
    assert "agrees with torch" in checks["onnx: checked again"]["detail"]


def test_the_comparison_is_with_torch_on_the_cpu(pair: Path) -> None:
    """A model that was loaded elsewhere is loaded once more."""
    for device, loads in (("cuda", 1), ("cpu", 0)):
        live = mock.Mock(some=[], record={"dtype": "float32"})
        live.loaded.model.device.type = device
        with (
            mock.patch("exporter.verification.onnx.InMemory.load") as load,
            mock.patch("exporter.onnx.check.self_check.Expected", side_effect=StopIteration),
            pytest.raises(StopIteration),
        ):
            check_again(live, onnx_of(pair))
        assert load.call_count == loads


OF_ONNX = [corruption for corruption in CORRUPTIONS if corruption.needs is has_onnx]


@pytest.mark.parametrize("corruption", OF_ONNX, ids=lambda corruption: corruption.name)
def test_corruption(corruption: Corruption, pair: Path, loading: FreshLoading) -> None:
    found = try_one(pair, corruption, loading, model=False)
    assert found.load is None and corruption.check in found.verify and corruption.check in found.remade


def test_a_graph_that_computes_something_else(copied_pair: Path) -> None:
    """Its sha256 made anew, so that only running it tells."""
    from exporter.checkpoint.reproduce import file_sha256

    data = onnx_of(copied_pair) / "onnx" / "model.onnx_data"
    content = bytearray(data.read_bytes())
    for place in range(len(content) // 2, len(content), 64):  # the exponents of some weights, little-endian
        content[place // 4 * 4 + 3] ^= 1
    put(data, bytes(content))
    onnx_record(lambda marker: marker["files"].update({"onnx/model.onnx_data": file_sha256(data)}))(copied_pair)
    assert failed(copied_pair, model=False) == []
    assert failed(copied_pair, model=True) == ["onnx: checked again"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_files_that_are_links(link: Callable[[Path, Path], None], pair: Path, tmp_path: Path) -> None:
    """Of a copy with hard links, and of the Hub's cache."""
    alone = copy_of(pair, tmp_path / "checkpoint")
    files = [path for path in onnx_of(pair).rglob("*") if path.is_file()]
    for path in files:
        target = onnx_of(alone) / path.relative_to(onnx_of(pair))
        target.parent.mkdir(parents=True, exist_ok=True)
        link(path, target)
    assert failed(alone, model=True) == []


def test_a_graph_that_cannot_be_read(copied_pair: Path) -> None:
    """Its sha256 made anew too."""
    from exporter.checkpoint.reproduce import file_sha256

    graph = onnx_of(copied_pair) / "onnx" / "model.onnx"
    put(graph, b"\x0a" + bytes(range(256)))
    onnx_record(lambda marker: marker["files"].update({"onnx/model.onnx": file_sha256(graph)}))(copied_pair)
    assert failed(copied_pair, model=True) == ["onnx: checked again"]


def test_edited_and_extra_files(copied_pair: Path) -> None:
    edit(onnx_of(copied_pair) / "self_check.json", set_(dtype="float16"))
    assert failed(copied_pair, model=False) == ["onnx: files"]
    shutil.copyfile(copied_pair / "config.json", onnx_of(copied_pair) / "config.json")
    put(onnx_of(copied_pair) / "onnx" / "model_q4.onnx", b"")
    assert failed(copied_pair, model=False) == ["onnx: files"]


def test_without_its_packages_it_is_not_checked_again(pair: Path) -> None:
    with mock.patch("exporter.common.extras.find_spec", lambda name: None):
        found = verify(VerifySettings(str(pair)), lambda text: None)
    checks = {check["name"]: check for check in found["checks"]}
    assert found["ok"] and checks["onnx: checked again"]["ok"] is None
    assert "pip install onnx onnxscript onnxruntime" in checks["onnx: checked again"]["detail"]


def test_elsewhere(pair: Path, tmp_path: Path) -> None:
    alone = copy_of(pair, tmp_path / "checkpoint")
    found = verify(VerifySettings(str(alone), model=False), lambda text: None)
    assert not any(check["name"].startswith("onnx") for check in found["checks"])
    found = verify(VerifySettings(str(alone), model=False, onnx=onnx_of(pair)), lambda text: None)
    assert found["ok"] and any(check["name"].startswith("onnx") for check in found["checks"])
