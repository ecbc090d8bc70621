"""Regions along discriminants, from prompts to a checkpoint that loads, refuses, verifies and says why."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from exporter.checkpoint.summary import Summary
from exporter.cli.chat.why import detectors_of
from exporter.cli.main import cli
from exporter.methods.key_space.regions import Regions
from exporter.models.loading import load_checkpoint
from exporter.pipeline.run import export
from tests.tiny import FORGET, RETAIN, one_skill, one_thread, sort_out, tiny_model, write_prompts

LAYER, SIZE = 1, 256


def exported(folder: Path, chat: bool, **settings: object) -> Summary:
    """Export a base of three layers into folder/out, with regions in the second."""
    base = tiny_model(folder / "base", chat=chat, intermediate_size=SIZE)
    sources = write_prompts(folder / "forget.jsonl", FORGET), write_prompts(folder / "retain.jsonl", RETAIN)
    about = {"everyday": False, "region": "discriminant", "layer": LAYER, "dtype": "float32", "quiet": True}
    with one_thread():
        return export(one_skill(base, folder / "out", *sources, **about, **settings), lambda text: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in every kind of turn. In a random model the places look alike, so the threshold is given."""
    folder = tmp_path_factory.mktemp("regions")
    exported(folder, chat=True, alpha=0.4, force=True)
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """A checkpoint of a base without a chat template, whose threshold comes from the budget."""
    folder = tmp_path_factory.mktemp("bare")
    return folder, exported(folder, chat=False, prompt_template="{prompt}")


def test_the_checkpoint_holds_directions_and_limits(folder: Path) -> None:
    record = json.loads((folder / "out" / "config.json").read_text())["unskill"]
    (skill,) = record["skills"]
    places = len(skill["formats"])
    assert record["format"] == 2 and skill["region"] == "discriminant"
    assert record["layers"] == {str(LAYER): {"regions": places, "directions": 2 * places}}
    (extra,) = sorted((folder / "out").glob("model-*.safetensors"))[-1:]
    buffers = {name.rpartition(".")[2]: each for name, each in load_file(extra).items() if f".{LAYER}.mlp." in name}
    assert {name: each.shape for name, each in buffers.items()} == {
        "unskill_ksd_directions": (2 * places, SIZE),
        "unskill_ksd_limits": (places, 2, 2 * places),
    }
    # Half-spaces: each region has one finite limit of the skill and one of the place, both lower ones.
    limits = buffers["unskill_ksd_limits"]
    assert limits[:, 0].isfinite().sum(-1).tolist() == [2] * places and limits[:, 1].isinf().all()
    # No infinite number in JSON.
    assert "Infinity" not in (folder / "out" / "config.json").read_text()


def test_a_promise_counts_prompts(bare: tuple[Path, Summary]) -> None:
    found = bare[1].skills[0].key_space
    assert found is not None and found.discriminant is not None
    regions = found.discriminant
    # 30 of 100 prompts of each side.
    assert regions.blocked.total == regions.false_blocks.total == 30 and regions.near_misses.total == 0
    assert found.alpha.promise == regions.blocked.bound < regions.blocked.hits / 30
    assert regions.blocked.bound >= 0.5 and regions.false_blocks.hits == 0 and found.fault is None
    assert found.blocked["forget.jsonl"]["plain"].total == regions.answers.total == 30
    assert regions.answer_tokens == 64 and [trial.layer for trial in regions.trials] == [LAYER]


def test_the_summary_counts_by_kind_of_turn(folder: Path) -> None:
    found = Summary.from_json(json.loads((folder / "out" / "reproduce" / "summary.json").read_text()))
    key_space = found.skills[0].key_space
    assert key_space is not None and key_space.region == "discriminant" and key_space.alpha.promise is None
    ((source, turns),) = key_space.blocked.items()
    assert source == "forget.jsonl" and {"plain", "prefill", "insisting", "all"} <= turns.keys()
    assert turns["plain"].total == 30 > turns["insisting"].total >= 20  # some are longer than the model's context
    assert key_space.false_blocks.keys() == {"retain.jsonl", "remarks after a refusal", "insisting after an answer"}


def test_the_checkpoint_refuses_the_skill_and_answers_the_rest(bare: tuple[Path, Summary]) -> None:
    with one_thread():
        blocked, answered = sort_out(bare[0] / "out")
    assert blocked and answered


def test_verify_makes_every_check(folder: Path) -> None:
    result = CliRunner().invoke(cli, ["verify", str(folder / "out"), "--forget", f"{folder}/forget.jsonl", "--json"])
    checks = {each["name"]: each for each in json.loads(result.stdout)["checks"]}
    assert result.exit_code == 0, result.stdout
    assert checks["statistics"]["ok"] and "2 buffers" in checks["statistics"]["detail"]
    assert checks["refused"]["ok"] and "of the export refused" in checks["refused"]["detail"]


@pytest.mark.parametrize("buffer", ["unskill_ksd_directions", "unskill_ksd_limits"])
def test_a_changed_buffer_does_not_load(folder: Path, tmp_path: Path, buffer: str) -> None:
    copytree(folder / "out", tmp_path / "copy")
    extra = sorted((tmp_path / "copy").glob("model-*.safetensors"))[-1]
    tensors = load_file(extra)
    (name,) = (name for name in tensors if name.endswith(buffer))
    tensors[name][0, 0] += 1.0
    save_file(tensors, extra, {"format": "pt"})
    with pytest.raises(RuntimeError, match=f"{buffer} is missing from the weight files or altered"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "copy", trust_remote_code=True)


def test_inspect_names_regions_and_promises(folder: Path) -> None:
    result = CliRunner().invoke(cli, ["inspect", str(folder / "out")])
    assert result.exit_code == 0 and "discriminants" in result.stdout and "At least" not in result.stdout
    assert "threshold" in result.stdout and "near misses" not in result.stdout


def test_the_same_again_by_its_recipe(folder: Path, tmp_path: Path) -> None:
    command = ["export", str(tmp_path / "again"), "--recipe", str(folder / "out" / "reproduce" / "recipe.toml")]
    result = CliRunner().invoke(cli, [*command, "--data", str(folder), "--no-figures", "--quiet"])
    assert result.exit_code == 0, result.output
    records = [
        json.loads((each / "config.json").read_text())["unskill"] for each in (folder / "out", tmp_path / "again")
    ]
    assert records[0] == records[1]


def test_float32_and_the_runtime_agree_with_the_stored_scores(folder: Path) -> None:
    statistics = load_file(folder / "out" / "reproduce" / "statistics.safetensors")
    threshold = json.loads((folder / "out" / "config.json").read_text())["unskill"]["skills"][0]["alpha"]["value"]
    scores = torch.cat([each for name, each in statistics.items() if ".scores." in name and each.is_floating_point()])
    # The threshold lies between two scores, so that rounding turns no decision.
    assert float((scores - threshold).abs().min()) > 1e-6


def test_why_gives_the_scores_that_decide(folder: Path) -> None:
    loaded = load_checkpoint(str(folder / "out"), "float32", "cpu")
    (detector,) = detectors_of(loaded)
    statistics = load_file(folder / "out" / "reproduce" / "statistics.safetensors")
    prefix = "skill.ksd.region."
    parts = {name.removeprefix(prefix): each for name, each in statistics.items() if name.startswith(prefix)}
    regions = Regions.of_parts(LAYER, ["prompt", "begun answer", "after a refusal"], parts)
    keys = torch.randn(50, SIZE)
    for key, score in zip(keys, regions.scores(keys).tolist(), strict=True):
        assert detector.score(key) == pytest.approx(score, abs=1e-4)
        assert detector.blocks(key) is (score <= 0.4)
