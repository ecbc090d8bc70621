"""Folders that were moved, linked or damaged: they refuse as before, or do not load; never a plain model."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import pytest
from transformers import AutoTokenizer

from exporter.common.errors import RunFailed
from exporter.onnx.check.runners import Session
from exporter.onnx.library import register
from exporter.onnx.operators import DOMAIN
from tests.exporter.onnx.conftest import Written

pytestmark = pytest.mark.slow

GRAPH = Path("onnx", "model.onnx")


def refuses(folder: Path, text: str, kernels: Path | None = None) -> bool:
    """Whether the graph there refuses a prompt."""
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    logits, _ = Session(folder / GRAPH, kernels).forward(np.array([ids]))
    refusal = json.loads((folder / "config.json").read_text())["unskill"]["refusal_token_id"]
    return int(logits[0, -1].argmax()) == refusal


@pytest.mark.parametrize("kernels", [False, True], ids=["bodies", "kernels"])
def test_moved_and_behind_links(kernels: bool, written: Callable[..., Written], library: Path, tmp_path: Path) -> None:
    """As in the Hub's cache, where every file is a link to one elsewhere, under a name that says nothing."""
    exported, folder, _ = written()
    moved, linked, blobs = shutil.copytree(folder, tmp_path / "moved"), tmp_path / "linked", tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(path for path in folder.rglob("*") if path.is_file()):
        shutil.copy(path, blobs / str(number))
        link = linked / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    for place in (moved, linked):
        assert refuses(place, exported.texts["blocked"][0], library if kernels else None)
        assert not refuses(place, exported.texts["answered"][0], library if kernels else None)


def test_weights_missing_or_cut_off(written: Callable[..., Written], tmp_path: Path) -> None:
    _, folder, _ = written()
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    data = damaged / "onnx" / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(RunFailed, match=r"model\.onnx_data is cut off: \d+ of \d+ bytes"):
        Session(damaged / GRAPH)
    # Nor does ONNX Runtime alone go on.
    with pytest.raises(Exception, match="out of bounds"):
        onnxruntime.InferenceSession(str(damaged / GRAPH), providers=["CPUExecutionProvider"])
    data.unlink()
    with pytest.raises(RunFailed, match=r"model\.onnx_data belongs beside it"):
        Session(damaged / GRAPH)
    with pytest.raises(Exception, match="does not exist"):
        onnxruntime.InferenceSession(str(damaged / GRAPH), providers=["CPUExecutionProvider"])


def test_a_graph_without_bodies_does_not_load(written: Callable[..., Written], tmp_path: Path) -> None:
    _, folder, _ = written()
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    graph = onnx.load(damaged / GRAPH, load_external_data=False)
    del graph.functions[:]
    onnx.save(graph, damaged / GRAPH)
    line = rf"^model\.onnx does not load in ONNX Runtime [\d.]+: .*{DOMAIN}.*is not a registered function/op"
    with pytest.raises(RunFailed, match=line):
        Session(damaged / GRAPH)
    graph.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(graph, damaged / GRAPH)
    with pytest.raises(RunFailed, match="does not load in ONNX Runtime"):
        Session(damaged / GRAPH)


@pytest.mark.parametrize("how", ["missing", "text", "another platform", "another library"])
def test_library_that_cannot_be_loaded(
    how: str, written: Callable[..., Written], library: Path, tmp_path: Path
) -> None:
    """One warning that says why, and bodies refuse in that session; where kernels were asked for by name, an error."""
    exported, folder, _ = written()
    wrong = tmp_path / f"{how.replace(' ', '-')}.so"
    if how == "text":
        wrong.write_text("no library")
    elif how == "another platform":
        content = bytearray(library.read_bytes())
        content[18:20] = (243).to_bytes(2, "little")  # ELF's e_machine: RISC-V
        wrong.write_bytes(content)
    elif how == "another library":
        shutil.copy(next(Path(onnxruntime.__file__).parent.glob("capi/*pybind11_state*.so")), wrong)
    options = onnxruntime.SessionOptions()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert register(options, wrong) is False
    assert len(caught) == 1 and "bodies are used" in str(caught[0].message)
    with mock.patch("onnxruntime.SessionOptions", lambda: options):  # these, in which it was to be registered
        assert refuses(folder, exported.texts["blocked"][0])
        assert not refuses(folder, exported.texts["answered"][0])
    with pytest.raises(RunFailed, match="cannot be loaded"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Session(folder / GRAPH, wrong)
