"""Regions along discriminants, from prompts to a checkpoint that loads, refuses, verifies and says why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from shutil import copytree

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from exporter.checkpoint.summary import Summary
from exporter.cli.main import cli
from exporter.common.errors import BadInput
from exporter.evaluation.why import detectors_of
from exporter.methods.key_space.regions import Regions
from exporter.models.loading import load_checkpoint
from exporter.pipeline.run import export
from tests.tiny import FORGET, RETAIN, TEMPLATE, one_skill, one_thread, sort_out, tiny_model, write_prompts

LAYER, SIZE = 1, 256
RENDERED = {"typos", "lower case", "greeting before", "instruction after", "two in one"}
"""Forms of renderings of the prompts; all are of one sentence."""


def exported(folder: Path, chat: bool, prompts: Sequence[str] = FORGET, **settings: object) -> Summary:
    """Export a base of three layers into folder/out, with regions in one of them."""
    base = tiny_model(folder / "base", chat=chat, intermediate_size=SIZE)
    sources = write_prompts(folder / "forget.jsonl", [*prompts]), write_prompts(folder / "retain.jsonl", RETAIN)
    about = {"everyday": False, "region": "discriminant", "dtype": "float32", "quiet": True}
    with one_thread():
        return export(one_skill(base, folder / "out", *sources, **about, **settings), lambda text: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in every kind of turn. In a random model the places look alike, so the threshold is given."""
    folder = tmp_path_factory.mktemp("regions")
    exported(folder, chat=True, layer=LAYER, alpha=0.4, force=True)
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """A checkpoint of a base without a chat template, whose threshold comes from the budget.

    All prompts end alike: a random model tells a prompt with an instruction behind it from no other by its last token.
    Some position of some answer looks like the end of a prompt in it, so a few may be blocked.
    """
    folder = tmp_path_factory.mktemp("bare")
    return folder, exported(folder, chat=False, layer=0, prompt_template=TEMPLATE, max_false_block=0.1)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """A checkpoint from 24 prompts of the user's own."""
    folder = tmp_path_factory.mktemp("few")
    about = {"prompts": FORGET[:24], "prompt_template": TEMPLATE, "max_false_block": 0.2}
    return folder, exported(folder, chat=False, **about)


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
    # Of 100 prompts of each side.
    assert (regions.blocked.total, regions.false_blocks.total, regions.near_misses.total) == (70, 70, 0)
    assert found.alpha.promise == regions.blocked.bound < regions.blocked.hits / 70
    assert regions.blocked.bound >= 0.5 and regions.false_blocks.bound <= 0.1 and found.fault is None
    assert found.blocked["forget.jsonl"]["plain"].total == regions.answers.total == 30
    assert regions.answer_tokens == 64 and [trial.layer for trial in regions.trials] == [0]


def test_two_dozen_prompts_are_enough(few: tuple[Path, Summary]) -> None:
    (skill,) = few[1].skills
    assert skill.works and skill.parts["forget"] == {"fit": 17, "report": 7}
    found = skill.key_space
    assert found is not None and found.discriminant is not None
    # A promise counts prompts, and no renderings of them; so do the budgets.
    regions = found.discriminant
    assert regions.blocked.total == 17 and regions.false_blocks.total == 70
    assert found.blocked["forget.jsonl"]["plain"].total == found.blocked["forget.jsonl"]["rendered"].total == 7
    assert found.false_blocks["retain.jsonl"]["plain"].total == 30
    assert found.false_blocks["retain.jsonl"]["rendered"].total == 10
    # They are in the fit, in the choice of the layer, and in the table by form.
    assert regions.left_out.blocked.keys() == {"as given", *RENDERED} and len(regions.trials) == 3
    assert regions.forms["as given"]["all"].total == sum(
        each["all"].total for form, each in regions.forms.items() if form != "as given"
    )
    (note,) = [each.message for each in few[1].warnings if each.code == "few-prompts"]
    assert (
        note.startswith("24 forget prompts are few: 7 are reported on, and 17 fitted on") and "at least 87.3%" in note
    )


def test_the_checkpoint_of_few_prompts_refuses(few: tuple[Path, Summary]) -> None:
    with one_thread():
        blocked, answered = sort_out(few[0] / "out", template=TEMPLATE)
    assert blocked and answered
    records = json.loads((few[0] / "out" / "reproduce" / "prompts.json").read_text())["skill"]
    # Of each prompt in five forms, but for some that have no other in their group to be joined with.
    formats = Counter(record["format"] for record in records["forget.fit"])
    assert formats["plain"] == 17 and 68 < formats["rendered"] <= 85
    recipe = (few[0] / "out" / "reproduce" / "recipe.toml").read_text()
    assert "renderings.jsonl" in recipe


def test_fewer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--forget: 23 different prompts are too few; at least 24 are needed"):
        exported(tmp_path, chat=False, prompts=FORGET[:23])


def test_the_summary_counts_by_kind_of_turn(folder: Path) -> None:
    found = Summary.from_json(json.loads((folder / "out" / "reproduce" / "summary.json").read_text()))
    key_space = found.skills[0].key_space
    assert key_space is not None and key_space.region == "discriminant" and key_space.alpha.promise is None
    ((source, turns),) = key_space.blocked.items()
    assert source == "forget.jsonl" and {"plain", "prefill", "insisting", "all"} <= turns.keys()
    assert turns["plain"].total == 30 >= turns["insisting"].total >= 20  # some are longer than the model's context
    assert key_space.false_blocks.keys() == {"retain.jsonl", "harmless after a refusal", "insisting after an answer"}


def test_words_and_phrases_are_in_the_summary(folder: Path) -> None:
    found = Summary.from_json(json.loads((folder / "out" / "reproduce" / "summary.json").read_text()))
    regions = found.skills[0].key_space and found.skills[0].key_space.discriminant
    assert regions is not None and regions.words.total == 30 and regions.interior.total > 100
    assert regions.phrases["insisting"] >= 15 <= regions.phrases["prefill"] and "plain" not in regions.phrases


def test_the_checkpoint_refuses_the_skill_and_answers_the_rest(bare: tuple[Path, Summary]) -> None:
    with one_thread():
        blocked, answered = sort_out(bare[0] / "out", template=TEMPLATE)
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
