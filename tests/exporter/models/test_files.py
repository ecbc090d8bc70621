"""A model's files: which of a Hub repo's are downloaded."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from exporter.common.errors import BadInput
from exporter.models.files import INDEX, WEIGHTS, find_base
from tests.damage import edit, set_
from tests.tiny import tiny_model

COMMIT = "c" * 40


class FakeHub:
    """One repo, of which `snapshot_download` copies what is asked for, as huggingface_hub does."""

    def __init__(self, repo: Path, cache: Path) -> None:
        self.repo, self.folder = repo, cache / COMMIT
        self.asked: list[str | None] = []

    def snapshot_download(self, model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.asked.append(revision)
        for source in (path for path in self.repo.rglob("*") if path.is_file()):
            name = source.relative_to(self.repo).as_posix()
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, self.folder / name)
        return str(self.folder)

    @property
    def weights(self) -> set[str]:
        found = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*")}
        return {name for name in found if name.endswith((".safetensors", ".bin", ".gguf"))}


@pytest.fixture
def hub(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """Of a repo with its weights in several other forms; by the parameter in one file, or in shards."""
    repo = tiny_model(tmp_path / "repo", shard_size=request.param)
    for name in ("consolidated.safetensors", "original/model.safetensors", "pytorch_model.bin", "a.gguf"):
        (repo / name).parent.mkdir(exist_ok=True)
        (repo / name).write_bytes(b"the same weights")
    hub = FakeHub(repo, tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


@pytest.mark.parametrize("hub", ["1GB", "60KB"], indirect=True)
def test_each_weight_is_downloaded_once(hub: FakeHub) -> None:
    found = find_base("org/model", "v1")
    index = hub.repo / INDEX
    named = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {WEIGHTS}
    assert hub.weights == set(found.shards) == named
    assert hub.asked == ["v1", COMMIT] and found.revision == COMMIT
    assert find_base("org/model", "v1") == found
    assert hub.asked == ["v1", COMMIT, "v1"]  # what is in the cache is not asked for again


@pytest.mark.parametrize("hub", ["60KB"], indirect=True)
@pytest.mark.parametrize("changes", [{"model_type": "bert"}, {"quantization_config": {"quant_method": "awq"}}])
def test_no_weights_of_a_model_that_cannot_be_exported(hub: FakeHub, changes: dict[str, Any]) -> None:
    edit(hub.repo / "config.json", set_(**changes))
    with pytest.raises(BadInput):
        find_base("org/model")
    assert hub.weights == set()
