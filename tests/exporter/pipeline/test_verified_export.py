"""What was written is loaded as a user loads it, by another process, before it becomes OUT."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.common.errors import RunFailed
from exporter.pipeline import prepared, run
from exporter.verification.apart import NotVerified, verify_apart
from tests.damage_weights import extra_shard, flip_weight
from tests.tiny import export_base, tiny_model

CUBE = {"layer": 1, "alpha": 5.0}


@pytest.mark.usefixtures("verified")
def test_verified_before_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is freed before, and modeling code goes to no cache of the user's."""
    models: list[weakref.ref[Any]] = []
    seen: list[dict[str, Any]] = []
    load = prepared.load

    def spied(*arguments: Any) -> Any:
        loaded = load(*arguments)
        models.append(weakref.ref(loaded.model))
        return loaded

    def verifying(folder: Path, *arguments: Any) -> list[dict[str, Any]]:
        assert [model() for model in models] == [None]
        assert not (tmp_path / "checkpoint").exists() and folder.parent == tmp_path
        cached = set(Path(os.environ["HF_MODULES_CACHE"]).rglob("*"))
        seen.extend(verify_apart(folder, *arguments))
        assert set(Path(os.environ["HF_MODULES_CACHE"]).rglob("*")) == cached
        return seen

    monkeypatch.setattr(prepared, "load", spied)
    monkeypatch.setattr(run, "verify_apart", verifying)
    base = tiny_model(tmp_path / "base", chat=False)
    export_base(tmp_path, base, **CUBE, threads=1)
    assert {check["ok"] for check in seen} == {True, None}
    assert {"loading", "logits", "refused"} <= {check["name"] for check in seen if check["ok"]}


@pytest.mark.usefixtures("verified")
@pytest.mark.parametrize(
    ("damage", "failed"),
    [
        (
            lambda folder: flip_weight(folder, "model.norm.weight", 0.5),
            "base weights: model-00001-of-00002",
        ),
        (lambda folder: extra_shard(folder).unlink(), "files: model-00002-of-00002.safetensors is missing"),
    ],
    ids=["weight", "missing file"],
)
def test_nothing_is_put_in_place_that_does_not_verify(
    damage: Callable[[Path], object], failed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = run.write_checkpoint

    def damaged(folder: Path, *arguments: Any) -> None:
        write(folder, *arguments)
        damage(folder)

    monkeypatch.setattr(run, "write_checkpoint", damaged)
    base = tiny_model(tmp_path / "base", chat=False)
    with pytest.raises(RunFailed, match=r"nothing was written, .* does not pass unskill verify") as error:
        export_base(tmp_path, base, **CUBE, threads=1)
    assert failed in str(error.value) and "\n" not in str(error.value) and ".unskill-" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "forget.jsonl", "retain.jsonl"}


@pytest.mark.usefixtures("verified")
def test_what_could_not_be_verified_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the system ends the other process for lack of memory: hours of work are not lost."""
    monkeypatch.setattr("exporter.verification.apart.START", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    base = tiny_model(tmp_path / "base", chat=False)
    with pytest.raises(NotVerified, match=r"ended with -9 .* kept as .*checkpoint-unverified: unskill verify"):
        export_base(tmp_path, base, **CUBE, threads=1)
    assert {path.name for path in tmp_path.iterdir()} == {
        "base",
        "checkpoint-unverified",
        "forget.jsonl",
        "retain.jsonl",
    }
    monkeypatch.undo()
    assert all(check["ok"] is not False for check in verify_apart(tmp_path / "checkpoint-unverified", "cpu", 1))
