"""The authors' published statistics: the real files against their description, and files that are not right."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from exporter import published
from exporter.errors import BadInput, RunFailed
from exporter.published import import_published, read_published
from tests.pickles import DOWN, GATE, cube, cube_file, floats, neurons, refused, write

REAL = Path(__file__).parents[3] / "shared" / "data" / "published_stats"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the authors' files are not beside the repository")

# --- the real files


@needs_real
@pytest.mark.parametrize(
    ("skill", "k", "means", "negative", "deviations", "median"),
    [
        ("GSM8K", 17.112232744693756, (-15.0559, 13.0172), 7225, (0.000468604, 10.642), 0.050106),
        ("MBPP", 18.453486263751984, (-16.6225, 27.9256), 7164, (0.000455944, 8.15923), 0.0536937),
        ("en", 230.30378855764866, (-13.2305, 1.86877), 7122, (0.0213683, 11.8003), 0.126723),
        ("zh", 243.46708320081234, (-9.09721, 12.6351), 7225, (0.0191733, 9.6429), 0.145207),
    ],
)
def test_real_cubes(skill, k, means, negative, deviations, median) -> None:
    content = read_published(REAL / f"forget_{skill}_llama_3_8b.pkl")
    assert content.kind == "key-space"
    assert sorted(content.tensors) == ["cube.31.deviation", "cube.31.k", "cube.31.mean"]
    mean, deviation = content.tensors["cube.31.mean"], content.tensors["cube.31.deviation"]
    assert {each.dtype for each in content.tensors.values()} == {torch.float64}
    assert mean.shape == deviation.shape == (14336,)
    assert content.tensors["cube.31.k"].shape == () and content.tensors["cube.31.k"].item() == k
    assert [mean.min().item(), mean.max().item()] == pytest.approx(means, rel=1e-5)
    assert int((mean < 0).sum()) == negative
    assert [deviation.min().item(), deviation.max().item()] == pytest.approx(deviations, rel=1e-5)
    assert np.median(deviation.numpy()) == pytest.approx(median, rel=1e-5)


@needs_real
def test_real_neurons() -> None:
    content = read_published(REAL / "forget_GSM8K_retain_MBPP_llama_3_8b_3dot0_percent.pkl")
    counts = """4 4 6 26 71 70 127 115 150 190 132 104 92 164 163 218 255 373 293 347 281 316 357 313 344 404 674 885
    1146 1619 2222 2298"""
    assert content.kind == "neuron-adjust" and len(content.tensors) == 64
    indices = [content.tensors[f"neurons.{layer}.index"] for layer in range(32)]
    parts = [content.tensors[f"neurons.{layer}.params"] for layer in range(32)]
    assert [len(index) for index in indices] == [int(count) for count in counts.split()]
    assert [part.shape for part in parts] == [(4, len(index)) for index in indices]
    assert {index.dtype for index in indices} == {torch.int64} and {part.dtype for part in parts} == {torch.float64}
    assert torch.cat(indices).max() == 14334 and torch.cat(indices).min() == 0
    mu_f, sd_f, mu_r, sd_r = torch.cat(parts, 1)
    assert len(mu_f) == 13763 == 458752 - int(458752 * 0.97)
    for values, low, high, mean, median in (
        (mu_r, -9.4665, 10.5544, -0.61022, -0.568754),
        (sd_r.square(), 0.0200242, 11.0142, 0.330743, 0.188511),
        (mu_f, -8.38514, 12.8475, -0.115164, -0.153373),
        (sd_f.square(), 0.0112987, 9.20987, 0.335212, 0.227297),
        (mu_f - mu_r, 0.308984, 4.34785, 0.495056, 0.411622),
        ((sd_f / sd_r).square(), 0.0570715, 8.50509, 1.18664, 0.977094),
    ):
        measured = [values.min().item(), values.max().item(), values.mean().item(), np.median(values.numpy())]
        assert measured == pytest.approx([low, high, mean, median], rel=1e-5)
    assert int((mu_r < 0).sum()) == 12525 and int((mu_f < 0).sum()) == 9101
    assert (parts[31][0] - parts[31][2]).max().item() == pytest.approx(4.347846, abs=1e-6)


@needs_real
@pytest.mark.parametrize("name", ["forget_en_llama_3_8b.pkl", "forget_GSM8K_retain_MBPP_llama_3_8b_3dot0_percent.pkl"])
def test_real_import(tmp_path: Path, name: str) -> None:
    summary = import_published(REAL / name, tmp_path / "out.safetensors", False)
    assert (summary["source"], summary["out"]) == (name, "out.safetensors")
    assert os.fspath(REAL).encode() not in (tmp_path / "out.safetensors").read_bytes()
    check_written(tmp_path / "out.safetensors", REAL / name)
    if summary["kind"] == "key-space":
        assert summary["layers"] == [31] and summary["d_ff"] == 14336 and summary["k"] == {"31": 230.30378855764866}
    else:
        assert summary["layers"] == list(range(32)) and sum(summary["neurons"].values()) == 13763


def check_written(out: Path, source: Path) -> None:
    content = read_published(source)
    written = load_file(out)
    assert written.keys() == content.tensors.keys()
    assert all(torch.equal(written[name], values) for name, values in content.tensors.items())
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert metadata["format"] == "pt" and metadata.keys() == {"format", "unskill_statistics"}
    assert json.loads(metadata["unskill_statistics"]) == {
        "version": 1,
        "kind": content.kind,
        "source": source.name,
        "sha256": digest,
    }


# --- files that are made here


def test_neurons(tmp_path: Path) -> None:
    # Lists of 1 and of 1001 are written with another instruction than others; files may be of either NumPy.
    layers = {10: neurons(0, 7, 70_000), 2: neurons(5), 0: neurons(), 3: neurons(*range(1001))}
    path = write(tmp_path, {GATE.format(layer): fields for layer, fields in layers.items()})
    content = read_published(path)
    assert list(content.tensors) == [f"neurons.{layer}.{name}" for layer in (2, 3, 10) for name in ("index", "params")]
    assert content.tensors["neurons.10.index"].tolist() == [0, 7, 70_000]
    assert content.tensors["neurons.10.params"].tolist() == [[0, -7, -70_000], [3] * 3, [0, 7, 70_000], [2] * 3]
    summary = import_published(path, tmp_path / "out.safetensors", False)
    assert json.loads(json.dumps(summary)) == {
        "kind": "neuron-adjust",
        "source": "statistics.pkl",
        "layers": [2, 3, 10],
        "neurons": {"2": 1, "3": 1001, "10": 3},
        "out": "out.safetensors",
    }
    check_written(tmp_path / "out.safetensors", path)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<i4", ">i8"])
def test_arrays_of_every_dtype(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path, cube_file(mean=floats(-1, 0, 3, dtype=dtype)))
    assert read_published(path).tensors["cube.31.mean"].tolist() == [-1, 0, 3]
    assert read_published(path).tensors["cube.31.mean"].dtype == torch.float64


def test_neuron_numbers_as_an_array(tmp_path: Path) -> None:
    path = write(tmp_path, {GATE.format(0): neurons(3, 9) | {"neuron_lst": np.array([3, 9])}})
    assert read_published(path).tensors["neurons.0.index"].tolist() == [3, 9]
    path = write(tmp_path, {GATE.format(0): neurons(3, 9) | {"neuron_lst": floats(3, 9)}})
    assert refused(path) == "FILE: model.layers.0.mlp.gate_proj: neuron_lst is not a list of whole numbers"


def test_k_that_never_moved_is_whole(tmp_path: Path) -> None:
    assert read_published(write(tmp_path, cube_file(k=10_000))).tensors["cube.31.k"].item() == 10_000


def test_numpy_1_and_2(tmp_path: Path) -> None:
    data = pickle.dumps(cube_file(), 4)
    texts = [b"\x8c\x15numpy.core.multiarray", b"\x8c\x16numpy._core.multiarray"]
    assert any(text in data for text in texts)
    for text in texts:
        other = data
        for each in texts:
            other = other.replace(each, text)
        # The frame's length has changed with the name's.
        other = other.replace(data[2:11], b"\x95" + struct.pack("<Q", len(other) - 11), 1)
        assert read_published(write(tmp_path, other)).tensors["cube.31.k"].item() == 17.5


def test_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = write(tmp_path, cube_file()), tmp_path / "out.safetensors"
    assert import_published(path, out, False) == {
        "kind": "key-space",
        "source": "statistics.pkl",
        "layers": [31],
        "d_ff": 3,
        "k": {"31": 17.5},
        "out": "out.safetensors",
    }
    assert import_published(path, out, True)["out"] == "out.safetensors"
    with pytest.raises(BadInput, match="exists: choose another file or give --overwrite"):
        import_published(path, out, False)
    with pytest.raises(BadInput, match="is the file to be imported"):
        import_published(path, path, True)
    with pytest.raises(BadInput, match="is a folder"):
        import_published(path, tmp_path, True)
    with pytest.raises(BadInput, match="does not exist"):
        import_published(path, tmp_path / "none" / "out.safetensors", False)
    assert {each.name for each in tmp_path.iterdir()} == {"statistics.pkl", "out.safetensors"}

    # Killed or failing in between, the old file is whole and nothing else is there.
    before = out.read_bytes()
    write(tmp_path, cube_file(k=2.0))
    for error, seen in ((OSError(5, "Input/output error"), RunFailed), (KeyboardInterrupt(), KeyboardInterrupt)):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(seen):
            import_published(path, out, True)
        assert out.read_bytes() == before
        assert {each.name for each in tmp_path.iterdir()} == {"statistics.pkl", "out.safetensors"}


# --- content that is wrong


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({}, "holds no layers"),
        ([cube()], "holds no layers"),
        ({"model.layers.1.mlp.up_proj": cube()}, "'model.layers.1.mlp.up_proj' is not the name of"),
        ({"model.layers.01.mlp.down_proj": cube()}, "is not the name of"),
        ({"model.layers.\u0661.mlp.down_proj": cube()}, "is not the name of"),
        ({"model.layers.1.mlp.down_proj\n": cube()}, "'model.layers.1.mlp.down_proj?' is not the name of"),
        ({"x" * 200: cube()}, "xxx...' is not the name of"),
        ({7: cube()}, "'int' is not the name of"),
        ({GATE.format(0): neurons(1), DOWN.format(1): cube()}, "down_proj is of another kind"),
        ({GATE.format(0): cube()}, "must have the fields mu1_lst, mu2_lst, neuron_lst, sigma1_lst, sigma2_lst and"),
        ({DOWN.format(0): [1]}, "must have the fields k, mean, std and no others"),
        (cube_file(extra=1), "must have the fields"),
        (cube_file(k=0.0), "k must be a finite number above 0"),
        (cube_file(k=float("nan")), "k must be"),
        (cube_file(k=float("inf")), "k must be"),
        (cube_file(k=True), "k must be"),
        (cube_file(k="17"), "k must be"),
        (cube_file(mean=[1.0, 2.0, 3.0]), "mean is not a NumPy array"),
        (cube_file(mean=floats(1, 2)), "std has 3 values, not 2"),
        (cube_file(mean=floats(), std=floats()), "mean is empty"),
        (cube_file(mean=floats(1, 2, float("nan"))), "mean holds NaN or infinity"),
        (cube_file(std=floats(1, 2, float("inf"))), "std holds NaN or infinity"),
        (cube_file(std=floats(1, 2, -1e-9)), "std holds deviations below 0"),
        ({DOWN.format(0): cube(mean=floats(1), std=floats(1)), **cube_file()}, "not of the same length in every"),
        ({GATE.format(0): neurons()}, "neuron_lst is empty in every layer"),
        ({GATE.format(0): neurons(3, 3)}, "neuron_lst must be neuron numbers from 0, strictly increasing"),
        ({GATE.format(0): neurons(3, 2)}, "strictly increasing"),
        ({GATE.format(0): neurons(-1, 2)}, "numbers from 0"),
        ({GATE.format(0): neurons(1) | {"neuron_lst": [True]}}, "is not a list of whole numbers"),
        ({GATE.format(0): neurons(1) | {"neuron_lst": [1.0]}}, "is not a list of whole numbers"),
        ({GATE.format(0): neurons(1) | {"neuron_lst": [1, 2]}}, "mu2_lst has 1 values, not 2"),
        ({GATE.format(0): neurons(1) | {"sigma1_lst": floats(0)}}, "sigma1_lst holds variances that are not above 0"),
        ({GATE.format(0): neurons(1) | {"sigma2_lst": floats(-1)}}, "sigma2_lst holds variances"),
        # What is not plain numbers in one dimension fails while it is unpickled, or before.
        (cube_file(mean=floats(1, 2, 3).reshape(1, 3)), "an array is not one-dimensional"),
        (cube_file(mean=floats(1, 2, 3, dtype=np.float16)), "not of float32, float64"),
        (cube_file(mean=floats(1, 2, 3, dtype=np.complex64)), "not of float32, float64"),
        (cube_file(mean=floats(1, 2, 3, dtype=object)), "not of float32, float64"),
        (cube_file(mean=np.zeros(3, [("a", "f4"), ("b", "f4")])), "not of float32, float64"),
        (cube_file(mean=np.array(["a"])), "not of float32, float64"),
        (cube_file(k=np.float64(2)), "multiarray.scalar, which no"),
        (cube_file(k=torch.zeros(1)), "asks for torch._utils._rebuild_tensor_v2, which no"),
        (cube_file(k=1 << 40), "uses the pickle instruction LONG1, which no statistics file needs; refused"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_content(tmp_path: Path, content: Any, line: str) -> None:
    assert line in refused(write(tmp_path, content))


def test_one_array_in_two_fields(tmp_path: Path) -> None:
    values = floats(1, 2, 3)
    assert "one that another field has too" in refused(write(tmp_path, cube_file(mean=values, std=values)))


# --- files that are something else


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"hello\n",
        b"cos\nsystem\n(S'true'\ntR.",
        save({"a": torch.zeros(3)}),
        b"PK\x03\x04",
        b"\x80",
        b"\xff" * 99,
    ],
)
def test_other_files(tmp_path: Path, content: bytes) -> None:
    assert refused(write(tmp_path, content)) == "FILE: is not a pickle of protocol 4, as the published statistics are"


def test_not_a_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.pkl") == "no such file: FILE"
    (tmp_path / "folder").mkdir()
    assert refused(tmp_path / "folder") == "FILE is a folder: name one file in it"
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == "no such file: FILE"


def test_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "large.pkl").open("wb") as file:
        file.truncate((512 << 20) + 1)
    assert "536870913 bytes are more than 536870912" in refused(tmp_path / "large.pkl")
    path = write(tmp_path, cube_file())
    monkeypatch.setattr(published, "MAX_INSTRUCTIONS", 40)
    assert "has more pickle instructions than any statistics file needs" in refused(path)


def test_cut_and_continued(tmp_path: Path) -> None:
    data = pickle.dumps({GATE.format(2): neurons(1, 2), GATE.format(3): neurons(4)}, 4)
    assert read_published(write(tmp_path, data)).kind == "neuron-adjust"
    for length in range(len(data)):
        refused(write(tmp_path, data[:length]))
    assert "goes on for 3 bytes after its end" in refused(write(tmp_path, data + b"abc"))
    assert "goes on" in refused(write(tmp_path, data + data))
