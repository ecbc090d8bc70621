"""Warnings of an export: each fires where it should, is silent where it should, and tells no text of a prompt."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.checkpoint.summary import Summary
from exporter.cli.main import cli
from exporter.cli.tables.export import print_summary
from exporter.common.rates import rate
from exporter.methods.key_space.calibration import Alpha, calibrate
from exporter.methods.key_space.evidence import Decision
from exporter.methods.key_space.framing import FrameCheck
from exporter.methods.neurons.choice import TextEffect
from exporter.pipeline.outcome_warnings import (
    forgets_little,
    frame_alone,
    small_calibration,
)
from exporter.pipeline.prompt_warnings import EXAMPLES, overlap, shared_prompts
from exporter.pipeline.run import export
from exporter.prompts.frames import Frame, FramedSource
from exporter.prompts.packaged import EVERYDAY
from exporter.prompts.sources import Prompt
from exporter.prompts.splits import part_sizes
from exporter.recipes.recipe import merged_settings
from exporter.recipes.settings import SkillSettings
from tests.tiny import PAIRS, one_skill, one_thread, tiny_model, write_prompts

SKILL = SkillSettings(("f",), ("r",), name="sums")
# Of the same words, so that a tiny random model knows forget prompts by how they end and by nothing else.
HAVING = [f"{name} has some {thing}" for name, thing in PAIRS]
TELLING = [f"{name} told us about the {thing}" for name, thing in PAIRS]
FORGET, RETAIN = [f"{text}?" for text in HAVING], [f"{text}." for text in TELLING]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base") / "tiny", chat=False)


def run(base: Path, out: Path, forget: list[str], retain: list[str], **changes: Any) -> dict[str, Any]:
    sources = write_prompts(out.parent / "f.jsonl", forget), write_prompts(out.parent / "r.jsonl", retain)
    chosen = {"everyday": False, "force": True, "quiet": True, "prompt_template": "{prompt}"}
    with one_thread():
        return export(one_skill(base, out, *sources, **{**chosen, **changes}), lambda text: None).to_json()


def codes(summary: dict[str, Any]) -> list[str]:
    return [each["code"] for each in summary["warnings"]]


def prompts(texts: list[str], source: str) -> list[Prompt]:
    return [Prompt(text, source, row) for row, text in enumerate(texts, start=1)]


# A hypercube that separates only the prompt format.


def test_a_hypercube_that_knows_the_last_character(base: Path, tmp_path: Path) -> None:
    """The figure is what the written checkpoint does with the same prompts."""
    summary = run(base, tmp_path / "out", FORGET, RETAIN)
    (caution,) = summary["warnings"]
    (frame,) = summary["skills"][0]["key_space"]["frames"]
    assert (caution["code"], caution["skill"], caution["figures"]) == ("frame", "skill", frame)
    assert (frame["sources"], frame["start_characters"], frame["end_characters"]) == (["f.jsonl"], 0, 1)
    assert (frame["forget_having"], frame["forget"]) == (100, 100)
    assert (frame["retain_having"], frame["retain"]) == (0, 100)
    records = json.loads((tmp_path / "out" / "reproduce" / "prompts.json").read_text())["skill"]["retain.report"]
    texts = [RETAIN[record["row"] - 1] for record in records]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)

    def blocked(text: str) -> bool:
        with torch.inference_mode():
            logits = model(**tokenizer(text, return_tensors="pt")).logits
        return int(logits[0, -1].argmax()) == model.config.unskill["refusal_token_id"]

    assert frame["framed"]["total"] == frame["bare"]["total"] == len(texts) == 50
    assert frame["framed"]["hits"] == sum(blocked(text[:-1] + "?") for text in texts) > 40
    assert frame["bare"]["hits"] == sum(map(blocked, texts)) == 0
    assert f"{frame['framed']['hits']} of 50 others" in caution["message"]


def test_a_frame_that_the_hypercube_does_not_go_by(base: Path, tmp_path: Path) -> None:
    """The figure is in the summary all the same."""
    end = " and then buys two more of them: how many is that altogether now?"
    summary = run(base, tmp_path / "out", [text + end for text in HAVING], RETAIN)
    (frame,) = summary["skills"][0]["key_space"]["frames"]
    assert frame["end_characters"] == len(end) and frame["framed"] == frame["bare"] and not frame["framed"]["hits"]
    assert not summary["warnings"]


def test_a_frame_that_retain_prompts_have_too(base: Path, tmp_path: Path) -> None:
    summary = run(base, tmp_path / "out", FORGET, [text[:-1] + "?" for text in RETAIN], layer=1, alpha=5.0)
    assert summary["skills"][0]["key_space"]["frames"] == [] and "frame" not in codes(summary)


@pytest.mark.parametrize(
    ("framed", "bare", "limit", "fires"),
    [
        ((10, 100), (0, 100), 0.01, True),
        ((3, 100), (0, 100), 0.01, False),  # from 0.6 % on
        ((10, 100), (0, 100), 0.1, False),
        ((60, 100), (55, 100), 0.01, False),  # inside as they are
        ((60, 100), (20, 100), 0.01, True),
        ((0, 0), (0, 0), 0.01, False),
    ],
)
def test_only_what_is_unmistakable(framed: tuple[int, int], bare: tuple[int, int], limit: float, fires: bool) -> None:
    source = FramedSource(("f.jsonl", "g.jsonl"), Frame(("Quiz", ":", " ", "say", " ")), 95, 100)
    check = FrameCheck(source, 2, 200, rate(*framed), rate(*bare))
    caution = frame_alone(SkillSettings(("f",), max_false_block=limit), check)
    assert (caution is not None) is fires
    if caution is not None:
        assert "95 of 100 forget prompts of f.jsonl and g.jsonl begin with the same 2 words" in caution.message
        assert "2 of 200" in caution.message and "Quiz" not in json.dumps([caution.message, dict(caution.figures)])


# A calibration part that is too small for the asked rate.


def decision(n: int, target: float) -> Decision:
    return cast("Decision", SimpleNamespace(alpha=calibrate(torch.arange(n).double(), target)))


@pytest.mark.parametrize("target", [0.9, 0.95, 0.99, 0.995])
def test_as_many_prompts_as_the_warning_names_do(target: float) -> None:
    skill = SkillSettings(("f",), target_block_rate=target)
    caution = small_calibration(skill, decision(20, target), 50)
    assert caution is not None
    needed = caution.figures["prompts_needed"]
    assert f"give {needed} different forget prompts instead of 50" in caution.message
    for more in range(12):
        assert small_calibration(skill, decision(part_sizes(needed + more)[2], target), needed + more) is None
    assert small_calibration(skill, decision(part_sizes(needed - 1)[2], target), needed - 1) is not None


def test_a_given_alpha_promises_nothing() -> None:
    given = cast("Decision", SimpleNamespace(alpha=Alpha(5.0, 0, None, None)))
    assert small_calibration(SKILL, given, 60) is None


def test_few_prompts(base: Path, tmp_path: Path) -> None:
    summary = run(base, tmp_path / "out", FORGET[:70], RETAIN, layer=1)
    (caution,) = [each for each in summary["warnings"] if each["code"] == "calibration"]
    found = summary["skills"][0]
    assert caution["figures"]["calibrated_on"] == found["parts"]["forget"]["calibrate"] < 45
    assert caution["figures"]["promise"] == found["key_space"]["alpha"]["promise"] < 0.95
    assert (caution["figures"]["prompts"], caution["figures"]["prompts_needed"]) == (70, 90)


# Prompts that are nearly the same.


def test_near_duplicates_are_named_by_row() -> None:
    forget, retain = prompts(HAVING[:20], "f.jsonl"), prompts(TELLING[:20], "r.jsonl")
    assert overlap("sums", forget, retain) is None
    copies = [Prompt(HAVING[row].upper() + "!", "r.jsonl", 100 + row) for row in range(5)]
    caution = overlap("sums", forget, [*retain, *copies])
    assert caution is not None and caution.code == "overlap" and caution.skill == "sums"
    assert caution.message.startswith("5 of the 25 retain and everyday prompts")
    assert "f.jsonl row 1 and r.jsonl row 100" in caution.message and "--everyday-without" not in caution.message
    assert len(caution.figures["examples"]) == EXAMPLES == caution.message.count("r.jsonl row")
    assert caution.figures["examples"][1] == [{"source": "f.jsonl", "row": 2}, {"source": "r.jsonl", "row": 101}]
    for text in HAVING + TELLING:
        assert text.lower() not in json.dumps([caution.message, dict(caution.figures)]).lower()


def test_everyday_prompts_are_left_out_by_kind() -> None:
    forget = prompts(HAVING[:3], "f.jsonl")
    packaged = [Prompt(HAVING[row] + "!", EVERYDAY, row, kind) for row, kind in ((0, "story"), (1, "budget"))]
    caution = overlap("sums", forget, packaged)
    assert caution is not None and "--everyday-without budget,story" in caution.message
    assert "take one" not in caution.message


def test_forget_prompts_of_two_skills() -> None:
    one, other = prompts(HAVING, "f.jsonl"), prompts(TELLING, "g.jsonl")
    assert shared_prompts(("sums", "news"), one, other) is None
    # Prompts that are wholly the same too: nothing else looks for these.
    caution = shared_prompts(("sums", "news"), one, [*other, Prompt(HAVING[7], "g.jsonl", 200)])
    assert caution is not None and caution.skill is None
    assert "1 of the 101 forget prompts of news" in caution.message
    assert "f.jsonl row 8 and g.jsonl row 200" in caution.message


def test_two_skills_of_one_data_set(base: Path, tmp_path: Path) -> None:
    """Their near duplicates and their neurons, in the summary and on the console."""
    forget, retain = (
        str(write_prompts(tmp_path / f"{name}.jsonl", texts)) for name, texts in (("f", FORGET), ("r", RETAIN))
    )
    again = str(write_prompts(tmp_path / "again.jsonl", [text.upper() for text in FORGET]))
    common = {"method": "na", "beta": 5.0, "score": "effect-size", "retain": (retain,)}
    skills = [{"name": "[sums]", "forget": (forget,), **common}, {"name": "again", "forget": (again,), **common}]
    given = {"model": str(base), "out": tmp_path / "out", "everyday": False, "force": True, "quiet": True}
    told: list[str] = []
    with one_thread():
        summary = export(merged_settings({"skill": skills}, given), told.append).to_json()
    (found,) = summary["shared_neurons"]
    each = [skill["neurons"]["layers"] for skill in summary["skills"]]
    assert found["skills"] == ["[sums]", "again"] and found["smaller"] == int(0.05 * 192)
    assert {layer: row["smaller"] for layer, row in found["layers"].items()} == {
        layer: min(counts.get(layer, 0) for counts in each) for layer in sorted({*each[0], *each[1]})
    }
    # What is shared is what the checkpoint has less than both together.
    assert summary["neurons_changed"] == 2 * found["smaller"] - found["shared"]
    assert ("shared-neurons" in codes(summary)) is (found["share"] >= 0.25)
    (caution,) = [caution for caution in summary["warnings"] if caution["code"] == "skills-overlap"]
    assert caution["figures"]["pairs"] == 100
    # Said before the model is loaded, too.
    assert f"warning: {caution['message']}" in told
    text = printed(summary)
    assert "Neurons that two skills both change" in text and "skill [sums]" in text and "[sums] and again" in text
    assert f"warning: {caution['message']}\n" in text


def printed(summary: dict[str, Any]) -> str:
    stream = io.StringIO()
    print_summary(Summary.from_json(summary), Console(file=stream, width=100), tables=True)
    return stream.getvalue()


# Neurons that forget next to nothing.


@pytest.mark.parametrize(("ratio", "fires"), [(0.9, True), (1.0, True), (1.09, True), (1.11, False), (2.0, False)])
def test_forgets_little(ratio: float, fires: bool) -> None:
    effect = TextEffect(12, 300, 2.0, math.log(ratio), 0.0)
    caution = forgets_little(SKILL, effect)
    assert (caution is not None) is fires
    if caution is not None:
        assert f"x{ratio:.3f}" in caution.message and "--no-everyday" in caution.message
        assert caution.figures["perplexity_ratio"] == pytest.approx(ratio)


def test_what_to_do_fits_what_was_asked() -> None:
    nothing = TextEffect(12, 300, 2.0, 0.0, 0.0)
    alone = forgets_little(SkillSettings(("f",), ("r",), everyday=False), nothing)
    given = forgets_little(SkillSettings(("f",), ("r",), beta=0.1), nothing)
    assert alone is not None and "--max-retain-loss" in alone.message and "--no-everyday" not in alone.message
    assert given is not None and "--beta" in given.message and "--max-retain-loss" not in given.message


def test_a_handful_of_neurons(base: Path, tmp_path: Path) -> None:
    for beta, fires in ((0.6, True), (60.0, False)):
        summary = run(base, tmp_path / str(beta), FORGET, RETAIN, method="sp", beta=beta)
        ratio = summary["skills"][0]["neurons"]["texts"]["forget"]["perplexity_ratio"]
        assert ("forgets-little" in codes(summary)) is fires is (ratio < 1.1)


# Where they are told.


def test_told_in_the_summary_the_card_and_as_json(base: Path, tmp_path: Path) -> None:
    forget = [*FORGET, f"{TELLING[3]} now?"]
    sources = write_prompts(tmp_path / "f.jsonl", forget), write_prompts(tmp_path / "r.jsonl", RETAIN)
    command = ["export", str(base), str(tmp_path / "out"), "--forget", str(sources[0]), "--retain", str(sources[1])]
    command += ["--no-everyday", "--prompt-template", "{prompt}", "--force", "--quiet", "--region", "hypercube"]
    with one_thread():
        told = CliRunner().invoke(cli, command)
        as_json = CliRunner().invoke(cli, [*command, "--overwrite", "--json"])
    assert told.exit_code == as_json.exit_code == 0
    cautions = json.loads(as_json.stdout)["warnings"]
    assert [each["code"] for each in cautions] == ["overlap", "frame"]
    # One line each, the last before what was written, though --quiet silences remarks.
    lines = told.stdout.split("\n")
    first = lines.index(f"warning: {cautions[0]['message']}")
    assert lines[first + 1] == f"warning: {cautions[1]['message']}" and lines[first + 3].startswith("Wrote ")
    card = (tmp_path / "out" / "README.md").read_text()
    stored = json.loads((tmp_path / "out" / "reproduce" / "summary.json").read_text())
    assert stored["warnings"] == cautions
    for each in cautions:
        assert f"\n- {each['message']}.\n" in card and "\n" not in each["message"]
    for text in (told.stdout, card, json.dumps(stored)):
        assert not any(prompt.strip("?.").lower() in text.lower() for prompt in FORGET + RETAIN)


def test_without_any_nothing_is_said(base: Path, tmp_path: Path) -> None:
    summary = run(base, tmp_path / "out", FORGET, [text[:-1] + "?" for text in RETAIN], layer=1, alpha=5.0)
    assert summary["warnings"] == [] and "warning" not in printed(summary)
    assert "Warnings" not in (tmp_path / "out" / "README.md").read_text()
