"""The base's folder comes back byte for byte, or nothing does and one line says why."""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from exporter.checkpoint import shards
from exporter.checkpoint.base.restore import RestoreSettings, restore
from exporter.cli.main import cli
from exporter.common import staging
from exporter.common.errors import BadInput, RunFailed
from tests.exporter.checkpoint.base.conftest import SMALL, contents, make_base, make_checkpoint
from tests.tiny import edit_json, export_base, tiny_export, tiny_model

ROOT = Path(__file__).parents[4]


def back(checkpoint: Path | str, out: Path, **settings: Any) -> dict[str, Any]:
    return restore(RestoreSettings(str(checkpoint), out, **settings), lambda text: None)


@pytest.mark.parametrize("blocks", [True, False], ids=["ksd", "na only"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("padding", [0, 3], ids=["row appended", "padding row"])
@pytest.mark.parametrize("size", ["1GB", "100KB"], ids=["one file", "shards"])
def test_every_file_comes_back(tmp_path: Path, size: str, padding: int, tied: bool, blocks: bool) -> None:
    base = make_base(tmp_path / "base", shard_size=size, padding_rows=padding, tie_word_embeddings=tied)
    checkpoint = make_checkpoint(tmp_path / "checkpoint", base, blocks=blocks)
    count = len(list(base.glob("*.safetensors")))
    assert (count == 1) == (size == "1GB")
    found = back(checkpoint, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(base)
    assert all(each["compared"] and not each["without_local_paths"] for each in found["files"].values())
    assert found["left_out"] == [] and SMALL.keys() < found["files"].keys()
    record = json.loads((checkpoint / "reproduce" / "base" / "files.json").read_text())["files"]
    rows = [row for each in record.values() for row in each.get("rows", [])]
    assert len(rows) == (0 if not (blocks and padding) else 1 if tied else 2)
    assert record["LICENSE"]["from"] == "checkpoint" and record["chat_template.jinja"]["from"] == "kept"
    assert any(each["from"] == "shard" for each in record.values()) == blocks


@pytest.mark.parametrize("option", [{"fingerprints": False}, {"link": True}], ids=["no fingerprints", "links"])
@pytest.mark.parametrize("blocks", [True, False], ids=["ksd", "na only"])
def test_other_ways_of_writing(tmp_path: Path, option: dict[str, bool], blocks: bool) -> None:
    base = make_base(tmp_path / "base", shard_size="100KB")
    checkpoint = make_checkpoint(tmp_path / "checkpoint", base, blocks=blocks, **option)
    found = back(checkpoint, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(base)
    unknown = {name for name, each in found["files"].items() if not each["compared"]}
    assert unknown == (set() if "link" in option else {path.name for path in base.glob("*.safetensors")})
    assert not any(path.stat().st_nlink > 1 for path in (tmp_path / "back").glob("*.safetensors"))
    printed = CliRunner().invoke(cli, ["restore", str(checkpoint), str(tmp_path / "again")]).stdout
    assert ("Not compared" in printed and "model-00001" in printed) == bool(unknown)


def test_base_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    """A snapshot of links to blobs comes back as plain files."""
    base = make_base(tmp_path / "base")
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    blobs.mkdir(parents=True)
    for number, path in enumerate(each for each in base.rglob("*") if each.is_file()):
        shutil.copy(path, blobs / str(number))
        link = snapshot / path.relative_to(base)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    back(make_checkpoint(tmp_path / "checkpoint", snapshot), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(base)
    assert not any(path.is_symlink() for path in (tmp_path / "back").rglob("*"))


def test_what_is_left_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base(tmp_path / "base")
    expected = contents(base)
    others = {
        "pytorch_model.bin": "pickle",
        "other.safetensors": "weights that were not used",
        "model.gguf": "weights that were not used",
        "prompts.jsonl": "no kind of file that is kept",
        "train.json": "no kind of file that is kept",
        "tokenizer.model.old": "larger than 40.0 kB",
        "onnx/": "folder",
        ".git/": "folder",
        "README-gone.md": "cannot be read",
    }
    monkeypatch.setattr("exporter.checkpoint.base.keeping.MAX_SIZE", 40_000)
    for name, why in others.items():
        if name.endswith("/"):
            (base / name).mkdir()
            (base / name / "config.json").write_text("{}")
        elif why == "cannot be read":
            (base / name).symlink_to("nowhere")
        else:
            (base / name).write_bytes(b"What is 2 + 2?" * (4000 if "larger" in why else 1))
    checkpoint = make_checkpoint(tmp_path / "checkpoint", base)
    kept = contents(checkpoint / "reproduce")
    assert not any(b"What is 2 + 2?" in content for content in kept.values())
    done = CliRunner().invoke(cli, ["restore", str(checkpoint), str(tmp_path / "back"), "--json"])
    found = json.loads(done.stdout)
    assert {each["name"]: each["why"] for each in found["left_out"]} == others
    assert contents(tmp_path / "back") == expected
    printed = CliRunner().invoke(cli, ["restore", str(checkpoint), str(tmp_path / "again")]).stdout
    assert all(name in printed for name in others)


HOME = "/home/somebody/models"


def test_local_paths_do_not_come_along(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    edit_json(base / "config.json", lambda config: {"_name_or_path": f"{HOME}/base", **config, "x_dir": "a/b"})
    (base / "README.md").write_text(f"Trained in {HOME}/run-1, {base} and https://a.org/home/page.\n")
    (base / "tokenizer.model").write_bytes(f"\xff\0{HOME}/corpus.txt\0".encode("latin-1"))
    original = contents(base)
    checkpoint = make_checkpoint(tmp_path / "checkpoint", base)
    places = re.compile(re.escape(HOME).encode() + b"|" + str(tmp_path).encode())
    assert [name for name, content in contents(checkpoint).items() if places.search(content)] == []
    done = CliRunner().invoke(cli, ["restore", str(checkpoint), str(tmp_path / "back")])
    assert "no export keeps: README.md, config.json\n" in done.stdout
    assert "tokenizer.model (holds a local path)" in done.stdout
    found = contents(tmp_path / "back")
    assert found.pop("README.md") == b"Trained in ,  and https://a.org/home/page.\n"
    assert found.pop("config.json") == original["config.json"].replace(f"{HOME}/base".encode(), b"")
    assert found == {name: each for name, each in original.items() if name in found}
    record = json.loads((checkpoint / "reproduce" / "base" / "files.json").read_text())["files"]["config.json"]
    assert record["without_local_paths"]["size"] == len(original["config.json"])
    assert record["size"] == len(original["config.json"]) - len(f"{HOME}/base")


@pytest.mark.parametrize("method", ["ksd", "na"])
def test_a_real_export(tmp_path: Path, method: str) -> None:
    exported = tiny_export(tmp_path, method=method, padding_rows=2 if method == "ksd" else 0)
    back(exported.checkpoint, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(exported.base)
    hashes = json.loads((exported.checkpoint / "reproduce" / "hashes.json").read_text())
    assert hashes.keys() == contents(exported.checkpoint).keys() - {"reproduce/hashes.json"}


def test_a_folder_of_licences_is_left_out(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", chat=False)
    (base / "LICENSES").mkdir()
    (base / "LICENSES" / "MIT.txt").write_text("MIT\n")
    (base / "LICENSE").symlink_to("nowhere")
    exported = export_base(tmp_path, base, layer=1, alpha=5.0)
    back(exported.checkpoint, tmp_path / "back")
    assert contents(base).keys() - contents(tmp_path / "back").keys() == {"LICENSES/MIT.txt"}


def test_checkpoint_on_the_hub(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, checkpoint = pair

    def download(model: str, what: str, patterns: list[str], revision: str | None = None) -> tuple[Path, str]:
        there = contents(checkpoint) | {"consolidated.safetensors": b"not the checkpoint's"}
        for name, content in there.items():
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):  # as huggingface_hub does
                (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "cache" / name).write_bytes(content)
        return tmp_path / "cache", "0" * 40

    for module in ("exporter.models.files", "exporter.checkpoint.base.restore"):
        monkeypatch.setattr(f"{module}.download", download)
    assert back("somebody/model", tmp_path / "back")["checkpoint"] == "somebody/model"
    assert contents(tmp_path / "back") == contents(base)
    assert not (tmp_path / "cache" / "consolidated.safetensors").exists()


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model-00001-of-", "model-00001-of-.*altered"),
        ("model-00002-of-", "model-00002-of-.*altered"),
        ("reproduce/base/tokenizer.json", "tokenizer.json: would not come back"),
        ("reproduce/base/model-00001-of-00004.safetensors.rows", "would not come back"),
        ("LICENSE.txt", "LICENSE.txt: would not come back"),
    ],
)
def test_altered_files(copied: Callable[[], tuple[Path, Path]], tmp_path: Path, name: str, message: str) -> None:
    _, checkpoint = copied()
    path = next(path for path in checkpoint.rglob("*") if str(path.relative_to(checkpoint)).startswith(name))
    flip(path, -1)
    with pytest.raises(RunFailed, match=message) as caught:
        back(checkpoint, tmp_path / "back")
    assert "nothing was written" in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_missing_and_other_files(copied: Callable[[], tuple[Path, Path]], tmp_path: Path) -> None:
    _, checkpoint = copied()
    base = checkpoint / "reproduce" / "base"
    shard = next(checkpoint.glob("model-00001-of-*"))
    content = shard.read_bytes()
    shard.write_bytes(next(checkpoint.glob("model-00002-of-*")).read_bytes())
    with pytest.raises(RunFailed, match=r"model-00001-of.* was altered \(tensor .* is missing"):
        back(checkpoint, tmp_path / "back")
    shard.write_bytes(content[:-7])
    with pytest.raises(BadInput, match="truncated"):
        back(checkpoint, tmp_path / "back")
    shard.unlink()
    with pytest.raises(BadInput, match="has no model-00001-of"):
        back(checkpoint, tmp_path / "back")
    shard.write_bytes(content)
    (base / "config.json").unlink()
    with pytest.raises(BadInput, match=r"has no reproduce/base/config\.json"):
        back(checkpoint, tmp_path / "back")
    shutil.rmtree(base)
    with pytest.raises(BadInput, match="saved anew") as caught:
        back(checkpoint, tmp_path / "back")
    assert "\n" not in str(caught.value)
    edit_json(checkpoint / "config.json", lambda config: {})
    with pytest.raises(BadInput, match="not one that unskill wrote"):
        back(checkpoint, tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_folder_that_is_there(copied: Callable[[], tuple[Path, Path]], tmp_path: Path) -> None:
    base, checkpoint = copied()
    for inside in (checkpoint, checkpoint / "back", tmp_path):
        with pytest.raises(BadInput, match="must be separate folders"):
            back(checkpoint, inside, overwrite=True)
    out = tmp_path / "back"
    out.mkdir()
    (out / "config.json").write_text("old")
    with pytest.raises(BadInput, match="back exists"):
        back(checkpoint, out)
    assert contents(out) == {"config.json": b"old"}
    back(checkpoint, out, overwrite=True)
    assert contents(out) == contents(base)
    shutil.rmtree(out)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("years")
    with pytest.raises(BadInput, match="not a model"):
        back(checkpoint, tmp_path / "thesis", overwrite=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_interrupted_or_full(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    calls = 0

    def stop(writer: int, chunk: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise error

    monkeypatch.setattr(shards, "_reflink", lambda reader, writer: False)
    monkeypatch.setattr(shards, "_write", stop)
    with pytest.raises(RunFailed if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        back(pair[1], tmp_path / "back")
    assert list(tmp_path.iterdir()) == [] and calls == 5
    assert "disk full" in str(caught.value) or not isinstance(error, OSError)


def test_too_little_room(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(RunFailed, match="too little disk space"):
        back(pair[1], tmp_path / "back")


def test_the_command(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, checkpoint = pair
    arguments = [str(checkpoint), str(tmp_path / "back")]
    # Moving bytes needs no torch, whose import takes longer.
    script = "import sys; from exporter.cli.main import cli; cli.main(standalone_mode=False)"
    script += "; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", script, "restore", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "back") == contents(base)
    assert done.stdout.startswith(f"Wrote {tmp_path / 'back'}: ") and "restoring" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "exporter", "restore", *arguments, "--quiet", "--overwrite", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout)["files"].keys() == contents(base).keys()
    done = subprocess.run(
        [sys.executable, "-m", "exporter", "restore", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2 and done.stdout == "" and "exists" in done.stderr
