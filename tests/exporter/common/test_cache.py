"""The folder of what exports keep."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from exporter.cli.main import cli
from exporter.common.cache import FOLDER, cache_folder, cached_files, make_room
from exporter.common.errors import BadInput


def put(folder: Path, name: str, size: int, used: int) -> Path:
    path = folder / name[:2] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (used, used))
    return path


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    old, new = put(tmp_path, "aa1.safetensors", 60, 1), put(tmp_path, "bb2.safetensors", 50, 3)
    killed = put(tmp_path, "bb3.safetensors.77.part", 30, 2)
    other = put(tmp_path, "bb4.txt", 500, 0)
    assert make_room(tmp_path, 60) == 90
    assert new.exists() and other.exists() and not old.exists() and not killed.exists()
    assert make_room(tmp_path, 60) == 0


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "kept"))
    assert cache_folder() == tmp_path / "kept" and cached_files(tmp_path / "kept") == []
    monkeypatch.setenv(FOLDER, "")
    assert cache_folder() is None
    monkeypatch.delenv(FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = cache_folder()
    assert found is not None and found.name.lower() == "unskill"


def test_a_file_is_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv(FOLDER, str(tmp_path / "file"))
    found = CliRunner().invoke(cli, ["cache", "rm"])
    assert isinstance(found.exception, BadInput) and "is no folder" in str(found.exception)
    assert (tmp_path / "file").read_text() == "mine"
