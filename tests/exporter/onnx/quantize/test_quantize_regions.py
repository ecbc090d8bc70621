"""`unskill onnx --quantize` of regions along discriminants: what it says of a graph is what the graph does.

What is refused is read here from the file that was written: from its logits, and once more from the keys that its
operators read, with numpy.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from exporter.checkpoint.reading import read_stored
from exporter.checkpoint.sentences import refitted_promise
from exporter.cli.main import cli
from exporter.common.errors import BadInput, Rejected
from exporter.common.text import unheard
from exporter.models.loading import load_checkpoint
from exporter.models.tokens import context_of
from exporter.onnx.quantize.again import check_parts, export_again
from exporter.onnx.quantize.run import check_refittable
from exporter.onnx.settings import GRAPH
from exporter.prompts.formats import PLAIN, Formatter, Query
from exporter.prompts.skills import SkillPlan, prepare_for
from tests.exporter.onnx.quantize.quantizing import LAYER, Graph, Made, constants, nodes, not_quantized

pytestmark = pytest.mark.slow

Quantized = Callable[[str, str], tuple[Made, Path, dict[str, Any]]]
PREFIX = "model.model.layers.{}.mlp.unskill_ksd_{}"


def plans_of(made: Made, out: Path) -> tuple[Formatter, list[SkillPlan]]:
    """The parts of the export, from its sources."""
    stored, loaded = read_stored(str(made.checkpoint)), load_checkpoint(str(made.checkpoint), "float32", "cpu")
    settings, skills = export_again(stored, made.settings(out), unheard)
    return prepare_for(skills, loaded.tokenizer, context_of(loaded.model), settings, unheard)


def refused(path: Path, made: Made, queries: Sequence[Query]) -> list[bool]:
    """Whether the graph refuses each query."""
    token = json.loads((made.checkpoint / "config.json").read_text())["unskill"]["refusal_token_id"]
    graph = Graph(path, [])
    return [int(graph(query.ids)[0][-1].argmax()) == token for query in queries]


def hits_by_turn(queries: Sequence[Query], hits: Sequence[bool]) -> dict[str, tuple[int, int]]:
    totals = Counter(query.format for query in queries)
    found = Counter(query.format for query, hit in zip(queries, hits, strict=True) if hit)
    return {name: (found[name], total) for name, total in totals.items()}


def counted(rates: dict[str, dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Of the one source, by kind of turn."""
    (turns,) = rates.values()
    return {name: (each["hits"], each["total"]) for name, each in turns.items() if name != "all"}


@pytest.mark.parametrize("which", ["regions", "turns"])
def test_every_figure_is_what_the_graph_does(which: str, quantized: Quantized, tmp_path: Path) -> None:
    made, folder, summary = quantized(which, "int8")
    path, found = folder / GRAPH["int8"], summary["skills"][0]["key_space"]
    _, (plan,) = plans_of(made, tmp_path / "out")
    assert plan.parts is not None and found["region"] == "discriminant"
    report = plan.parts.report
    assert counted(found["blocked"]) == hits_by_turn(report.asked, refused(path, made, report.asked))
    own = [query for query in report.answered if query.prompt.source == "retain.jsonl"]
    assert counted({"": found["false_blocks"]["retain.jsonl"]}) == hits_by_turn(own, refused(path, made, own))
    kinds = {"plain", "rendered"} if which == "regions" else {"plain", "prefill", "insisting"}
    assert kinds <= counted(found["blocked"]).keys()
    assert summary["agrees"] is True and {row["side"] for row in summary["self_check"]} == {"bodies"}


def test_the_promise_counts_the_prompts_of_the_fit(quantized: Quantized, tmp_path: Path) -> None:
    made, folder, summary = quantized("regions", "int8")
    path, found = folder / GRAPH["int8"], summary["skills"][0]["key_space"]
    _, (plan,) = plans_of(made, tmp_path / "out")
    assert plan.parts is not None and summary["separates"] is True
    plain = [query for query in plan.parts.fit.asked if query.format == PLAIN]
    promised = found["discriminant"]["blocked"]
    # Without themselves; directions that have seen them know them better.
    assert sum(refused(path, made, plain)) >= promised["hits"] and len(plain) == promised["total"]
    assert found["alpha"]["promise"] == promised["bound"] >= 0.5
    # One prompt counts once, in whatever form.
    harmless = {query.prompt.given.text for query in plan.parts.fit.answered}
    hits = refused(path, made, plan.parts.fit.answered)
    assert found["discriminant"]["false_blocks"]["total"] == len(harmless) and sum(hits) <= 0.1 * len(harmless)


@pytest.mark.parametrize("which", ["regions", "turns"])
def test_without_quantizing_it_is_what_the_export_fitted(
    which: str, made: Callable[[str], Made], tmp_path: Path
) -> None:
    """The same way through ONNX Runtime, its answers too, on the graph in float32."""
    tried = made(which)
    with mock.patch("exporter.onnx.quantize.run.quantize", not_quantized):
        summary = tried.write(tmp_path / "out")
    found = summary["skills"][0]["key_space"]
    exported = json.loads((tried.checkpoint / "reproduce" / "summary.json").read_text())["skills"][0]["key_space"]
    for figure in ("hypercubes", "alpha", "blocked", "false_blocks", "false_blocks_over_answers", "fault"):
        assert found[figure] == exported[figure], figure
    for figure in ("blocked", "false_blocks", "forms", "answers", "words", "interior"):
        assert found["discriminant"][figure] == exported["discriminant"][figure], figure
    before, after = constants(tried.graph), constants(tmp_path / "out" / GRAPH["int4"])
    assert before.keys() == after.keys()
    for name, values in before.items():
        finite = np.isfinite(values)
        assert np.array_equal(finite, np.isfinite(after[name]))
        scale = np.abs(values[finite]).max()
        np.testing.assert_allclose(after[name][finite] / scale, values[finite] / scale, atol=1e-3, err_msg=name)


def test_decisions_are_those_of_directions_and_limits(quantized: Quantized, tmp_path: Path) -> None:
    made, folder, _ = quantized("turns", "int8")
    path, held = folder / GRAPH["int8"], constants(folder / GRAPH["int8"])
    directions, limits = (held[PREFIX.format(LAYER, name)] for name in ("directions", "limits"))
    before = load_file(sorted(made.checkpoint.glob("*.safetensors"))[-1])
    for name, values in (("directions", directions), ("limits", limits)):
        old = before[PREFIX.format(LAYER, name).removeprefix("model.")].numpy()
        assert values.dtype == np.float32 and values.shape == old.shape and not np.array_equal(values, old)
    (detect,) = nodes(path, "RegionDetect")
    graph = Graph(path, [detect.input[0]])
    _, (plan,) = plans_of(made, tmp_path / "out")
    assert plan.parts is not None
    asked = plan.parts.report.asked[::3]
    along = np.stack([graph(query.ids)[1][-1].astype(np.float64) for query in asked]) @ directions.T.astype(np.float64)
    inside = ((along[:, None] >= limits[:, 0]) & (along[:, None] <= limits[:, 1])).all(-1).any(-1)
    assert inside.tolist() == refused(path, made, asked) and 0 < inside.sum() < len(inside)


def test_what_is_answered_is_untouched(quantized: Quantized, tmp_path: Path) -> None:
    """Bit by bit the logits of the graph whose regions hold nothing, which are what its output head computes."""
    made, folder, _ = quantized("regions", "int8")
    path, held = folder / GRAPH["int8"], constants(folder / GRAPH["int8"])
    token = json.loads((made.checkpoint / "config.json").read_text())["unskill"]["refusal_token_id"]
    limits = PREFIX.format(0, "limits")
    nothing = np.full_like(held[limits], np.inf)
    last = nodes(path, "MatMul")[-1].output[0]  # of the two parts of the output head
    (head,) = (node.output[0] for node in nodes(path, "Concat") if last in node.input)
    graph, bare = Graph(path, []), Graph(path, [head], {limits: nothing})
    _, (plan,) = plans_of(made, tmp_path / "out")
    assert plan.parts is not None
    plain = [query for query in plan.parts.report.answered if query.format == PLAIN]
    for query in plain[:12]:
        (found,), (without, raw) = graph(query.ids), bare(query.ids)
        assert np.array_equal(found, without)
        others = np.arange(found.shape[-1]) != token
        assert np.array_equal(found[:, others], raw[:, others])


def test_the_folder_verifies_and_says_what_it_is(quantized: Quantized) -> None:
    made, folder, summary = quantized("turns", "int8")
    result = CliRunner().invoke(cli, ["verify", str(made.checkpoint), "--onnx", str(folder), "--json", "--quiet"])
    checks = {each["name"]: each for each in json.loads(result.stdout)["checks"]}
    assert result.exit_code == 0 and all(each["ok"] for name, each in checks.items() if name.startswith("onnx"))
    assert "agrees with itself" in checks["onnx: checked again"]["detail"]
    found = summary["skills"][0]["key_space"]
    record = json.loads((folder / "config.json").read_text())["unskill"]
    (skill,) = record["skills"]
    assert skill["region"] == "discriminant" and skill["formats"] == found["hypercubes"]
    assert skill["blocked"] == found["blocked"] and skill["alpha"] == found["alpha"]
    old = json.loads((made.checkpoint / "config.json").read_text())["unskill"]
    assert record["layers"] == old["layers"] and record["sha256"].keys() == old["sha256"].keys()
    changed = {name for name, digest in record["sha256"].items() if digest != old["sha256"][name]}
    assert changed == {f"layers.{LAYER}.mlp.unskill_ksd_{name}" for name in ("directions", "limits")}
    card = (folder / "README.md").read_text()
    assert "kind of turn" in card and "Threshold was given" in card and "hypercube" not in card
    plain = found["blocked"]["forget.jsonl"]["plain"]
    assert f"| forget set | forget.jsonl | plain | {plain['hits']} of {plain['total']} |" in card
    shown = CliRunner().invoke(cli, ["inspect", str(folder)])
    assert shown.exit_code == 0
    assert "".join(refitted_promise(found, summary).split()) in "".join(shown.stdout.split())


def test_what_does_not_separate_is_not_written_without_force(made: Callable[[str], Made], tmp_path: Path) -> None:
    with mock.patch("exporter.methods.key_space.detection.LEAST_BLOCKED", 1.1):
        with pytest.raises(
            Rejected, match=rf"skill: on the quantized graph layer {LAYER} does not separate"
        ) as caught:
            made("turns").write(tmp_path / "out", "int8", answers=False)
        assert caught.value.exit_code == 1 and list(tmp_path.iterdir()) == []
        summary = made("turns").write(tmp_path / "out", "int8", answers=False, force=True)
    found = summary["skills"][0]["key_space"]
    assert summary["separates"] is False and found["false_blocks_over_answers"] is None
    assert found["discriminant"]["answer_tokens"] == 0 and found["discriminant"]["left_out"]["layer"] == LAYER
    card = (tmp_path / "out" / "README.md").read_text()
    assert "NOT SEPARATED" in card and "Answers to harmless prompts were not looked at." in card
    shown = CliRunner().invoke(cli, ["inspect", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output


def test_half_spaces_and_hypercubes_in_one_layer(quantized: Quantized, tmp_path: Path) -> None:
    """Two skills, one of which adjusts neurons too: each region has an operator, which read parts of the constants."""
    made, folder, summary = quantized("two", "int8")
    path = folder / GRAPH["int8"]
    found = {each["name"]: each for each in summary["skills"]}
    assert [each["key_space"]["region"] for each in found.values()] == ["discriminant", "hypercube"]
    assert found["skill"]["neurons"] is not None and found["letters"]["neurons"] is None
    assert len(nodes(path, "RegionDetect")) == len(nodes(path, "KeySpaceDetect")) == 2
    before, after = constants(made.graph), constants(path)
    changed = {name.rpartition(".")[2] for name in after if not np.array_equal(before[name], after[name])}
    assert {"unskill_ksd_bounds", "unskill_ksd_directions", "unskill_ksd_limits", "least"} <= changed
    assert all(before[name].shape == after[name].shape for name in after)
    # A prompt is refused where it is inside any region of the layer, so counts of one skill are the least.
    _, (skill, letters) = plans_of(made, tmp_path / "out")
    assert skill.parts is not None and letters.parts is None
    for name, plan in (("skill", skill), ("letters", letters)):
        asked = plan.forget.report
        blocked = found[name]["key_space"]["blocked"]
        own = sum(each["plain"]["hits"] for each in blocked.values())
        assert 0 < own <= sum(refused(path, made, asked))


def test_prompts_in_other_parts_are_refused(made: Callable[[str], Made], tmp_path: Path) -> None:
    tried = made("regions")
    formatter, (plan,) = plans_of(tried, tmp_path / "out")
    (stored,) = read_stored(str(tried.checkpoint)).skills
    check_parts(stored, plan, formatter, "0")
    assert plan.parts is not None
    shorter = replace(plan.parts, report=replace(plan.parts.report, asked=plan.parts.report.asked[1:]))
    with pytest.raises(BadInput, match=r"part forget\.report of skill is not what the export had"):
        check_parts(stored, replace(plan, parts=shorter), formatter, "0")


def test_packaged_prompts_need_no_sources(made: Callable[[str], Made], tmp_path: Path) -> None:
    tried = made("regions")
    stored, settings = read_stored(str(tried.checkpoint)), tried.settings(tmp_path / "out", forget=(), retain=())
    with pytest.raises(BadInput, match="give the export's sources again"):
        check_refittable(stored, settings)
    (skill,) = stored.recipe["skills"]
    sources = [source | {"flag": "--skill", "label": "maths"} for source in skill["sources"][:1]]
    packaged = skill | {"packaged": ("maths",), "forget": (), "retain": (), "sources": sources}
    stored = replace(stored, recipe=stored.recipe | {"skills": [packaged]})
    check_refittable(stored, settings)
    _, (prompts,) = export_again(stored, settings, unheard)
    assert prompts.skill.packaged == ("maths",) and len(prompts.forget) > 500
    assert {record.flag for record in prompts.records} == {"--skill"}
