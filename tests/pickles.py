"""Pickle files of statistics that tests write, and the one line that a bad one is refused with."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.errors import BadInput
from exporter.published import import_published

REAL = Path(__file__).parents[3] / "shared" / "data" / "published_stats"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the authors' files are not beside the repository")

GATE, DOWN = "model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.down_proj"


def floats(*values: float, dtype: Any = np.float32) -> np.ndarray:
    return np.array(values, dtype)


def neurons(*index: int) -> dict[str, Any]:
    """Fields of a layer: retain N(i, 4), forget N(-i, 9)."""
    mean = np.array(index, np.float32)
    fields = {"mu1_lst": mean, "sigma1_lst": mean * 0 + 4, "mu2_lst": -mean, "sigma2_lst": mean * 0 + 9}
    return {**fields, "neuron_lst": list(index)}


def cube(**changes: Any) -> dict[str, Any]:
    return {"mean": floats(-1, 0, 2.5), "std": floats(0, 1, 0.5), "k": 17.5, **changes}


def cube_file(**changes: Any) -> dict[str, Any]:
    return {DOWN.format(31): cube(**changes)}


def write(folder: Path, content: Any, name: str = "statistics.pkl", protocol: int = 4) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


def refused(path: Path) -> str:
    """The one line that an import fails with, without the file's name; nothing is written."""
    before = {each.name for each in path.parent.iterdir()}
    with pytest.raises(BadInput) as caught:
        import_published(path, path.parent / "out.safetensors", False)
    assert {each.name for each in path.parent.iterdir()} == before
    line = str(caught.value)
    assert str(path) in line and line.isprintable() and len(line) < 400 + len(str(path))
    return line.replace(str(path), "FILE")
