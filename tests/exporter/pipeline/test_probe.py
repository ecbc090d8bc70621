"""`unskill probe`: what it finds is what an export finds, is taken for nothing else, and survives interruptions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from exporter.common.errors import BadInput
from exporter.methods.neurons.statistics_file import KEY, StatisticsFile
from exporter.models.prober import Prober
from exporter.pipeline import probe as probing
from exporter.pipeline.probe import probe
from exporter.pipeline.run import export
from exporter.recipes.settings import ExportSettings
from tests.tiny import FORGET, RETAIN, one_skill, one_thread, tiny_model, write_prompts


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base") / "tiny", chat=False)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


def settings(base: Path, out: Path, **changes: Any) -> ExportSettings:
    folder = out.parent
    sources = write_prompts(folder / "f.jsonl", FORGET), write_prompts(folder / "r.jsonl", RETAIN)
    chosen = {"method": "na", "beta": 5.0, "score": "effect-size", "force": True, "quiet": True, "batch_size": 8}
    chosen["everyday"] = False  # longer, byte by byte, than this model takes
    return one_skill(base, out, *sources, **{**chosen, **changes})


def quiet(text: str) -> None:
    pass


def test_an_export_with_the_file_is_the_one_without(base: Path, tmp_path: Path) -> None:
    found = probe(settings(base, tmp_path / "s.safetensors"), quiet)
    assert found["skills"]["skill"]["forget"]["texts"] == 35  # the fit part of 100
    without = export(settings(base, tmp_path / "one"), quiet)
    stored = export(settings(base, tmp_path / "two", statistics=tmp_path / "s.safetensors"), quiet)
    assert stored == without
    extra = "model-00002-of-00002.safetensors"
    tensors = [load_file(tmp_path / name / extra) for name in ("one", "two")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


@pytest.mark.parametrize("method", ["na+ksd", "sp"])
@pytest.mark.slow
def test_the_file_serves_the_other_methods_too(method: str, base: Path, tmp_path: Path) -> None:
    probe(settings(base, tmp_path / "s.safetensors"), quiet)
    changes = {"score": None} if method == "sp" else {"layer": 1, "prompt_template": "{prompt}"}
    export(settings(base, tmp_path / "out", method=method, statistics=tmp_path / "s.safetensors", **changes), quiet)
    assert (tmp_path / "out" / "config.json").is_file()


def test_other_texts_and_other_models_are_told(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    probe(settings(base, file), quiet)
    with pytest.raises(BadInput, match=r"--statistics: s\.safetensors does not have the forget texts of skill"):
        export(settings(base, tmp_path / "out", statistics=file, seed=1), quiet)
    other = tiny_model(tmp_path / "other", chat=False, tie_word_embeddings=True)
    with pytest.raises(BadInput, match="of another model"):
        export(settings(other, tmp_path / "out", statistics=file), quiet)
    assert not (tmp_path / "out").exists()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("batches", [1, 3, 5, 8])
def test_an_interrupted_probe_goes_on(
    batches: int, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, left, sizes = Prober.forward, [100], []

    def failing(self: Prober, queries: Any) -> None:
        if not left[0]:
            raise Interrupted
        left[0] -= 1
        sizes.append(len(queries))
        forward(self, queries)

    monkeypatch.setattr(Prober, "forward", failing)
    monkeypatch.setattr(probing, "SAVE_SECONDS", -1.0)
    probe(settings(base, tmp_path / "whole.safetensors"), quiet)
    all_batches, left[0] = len(sizes), batches
    assert all_batches > batches
    file = tmp_path / "parts.safetensors"
    with pytest.raises(Interrupted):
        probe(settings(base, file), quiet)
    assert not file.exists()
    partial = StatisticsFile.load(file.with_name("parts.safetensors.partial"), "OUT")
    assert sum(side.done for side in partial.skills["skill"].values()) == sum(sizes[:batches])
    left[0] = 100
    said: list[str] = []
    probe(settings(base, file), said.append)
    assert 100 - left[0] == all_batches - batches and any("parts.safetensors.partial" in each for each in said)
    assert sorted(path.name for path in tmp_path.glob("*parts*")) == ["parts.safetensors"]
    whole, parts = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_what_another_model_has_left_is_not_gone_on_with(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    probe(settings(base, file), quiet)
    file.rename(file.with_name("s.safetensors.partial"))
    other = tiny_model(tmp_path / "other", chat=False, tie_word_embeddings=True)
    with pytest.raises(BadInput, match=r"s\.safetensors\.partial"):
        probe(settings(other, file), quiet)


def test_a_file_that_is_there_is_not_replaced_unasked(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    file.write_text("mine")
    with pytest.raises(BadInput, match="--overwrite"):
        probe(settings(base, file), quiet)
    assert file.read_text() == "mine"
    probe(settings(base, file, overwrite=True), quiet)
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()[KEY])["kind"] == "probe"


def test_no_text_and_no_path_in_the_file(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    probe(settings(base, file), quiet)
    content = file.read_bytes()
    assert str(tmp_path).encode() not in content and FORGET[0].encode() not in content


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\x80\x04N."])
def test_files_that_are_no_statistics(content: bytes, base: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=r"--statistics: s\.safetensors is not a statistics file") as error:
        export(settings(base, tmp_path / "out", statistics=file), quiet)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {KEY: "{}"},
        {KEY: "[1]"},
        {KEY: '{"version": 2, "kind": "probe"}'},
        {KEY: '{"version": 1, "kind": "probe", "model": "", "dtype": "", "skills": {"a": {"forget": {"done": 1}}}}'},
    ],
)
def test_safetensors_that_are_no_statistics(metadata: dict[str, str] | None, base: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    save_file({"a": torch.zeros(1)}, file, metadata)
    with pytest.raises(BadInput, match=r"--statistics: s\.safetensors") as error:
        export(settings(base, tmp_path / "out", statistics=file), quiet)
    assert "\n" not in str(error.value)
