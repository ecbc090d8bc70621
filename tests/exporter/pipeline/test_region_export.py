"""Regions along discriminants, from prompts to a checkpoint that loads, refuses, verifies and says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from exporter.checkpoint.summary import Summary
from exporter.pipeline.run import export
from tests.tiny import FORGET, RETAIN, one_skill, tiny_model, write_prompts

LAYER = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, prompts, and a checkpoint whose regions lie in the second of three layers."""
    folder = tmp_path_factory.mktemp("regions")
    base = tiny_model(folder / "base")
    sources = write_prompts(folder / "forget.jsonl", FORGET), write_prompts(folder / "retain.jsonl", RETAIN)
    settings = one_skill(
        base, folder / "out", *sources, everyday=False, region="discriminant", layer=LAYER, dtype="float32", force=True
    )
    export(settings, lambda text: None)
    return folder


@pytest.fixture(scope="module")
def summary(folder: Path) -> Summary:
    return Summary.from_json(json.loads((folder / "out" / "reproduce" / "summary.json").read_text()))


def test_the_checkpoint_holds_directions_and_limits(folder: Path, summary: Summary) -> None:
    record = json.loads((folder / "out" / "config.json").read_text())["unskill"]
    (skill,) = record["skills"]
    places = len(skill["formats"])
    assert record["format"] == 2 and skill["region"] == "discriminant"
    assert record["layers"] == {str(LAYER): {"regions": places, "directions": 2 * places}}
    (extra,) = sorted((folder / "out").glob("model-*.safetensors"))[-1:]
    buffers = {name.rpartition(".")[2]: each for name, each in load_file(extra).items() if f".{LAYER}.mlp." in name}
    assert {name: each.shape for name, each in buffers.items()} == {
        "unskill_ksd_directions": (2 * places, 64),
        "unskill_ksd_limits": (places, 2, 2 * places),
    }
    # Half-spaces: each region has one finite limit of the skill and one of the place, both lower ones.
    limits = buffers["unskill_ksd_limits"]
    assert limits[:, 0].isfinite().sum(-1).tolist() == [2] * places and limits[:, 1].isinf().all()
    # No infinite number in JSON.
    assert "Infinity" not in (folder / "out" / "config.json").read_text()
