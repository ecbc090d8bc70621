"""The numbers of a report against the statistics file of the checkpoint, read here on its own."""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.stats import mannwhitneyu, norm

from exporter.pipeline.run import export
from exporter.recipes.recipe import merged_settings
from exporter.reporting.charts import CHARTS
from exporter.reporting.key_space import expected_median, gaussian_share
from tests.several import Several
from tests.tiny import FORGET, RETAIN, Exported, one_thread, tiny_model, write_prompts

Reported = Callable[..., tuple[Path, dict[str, Any]]]


def figures(numbers: dict[str, Any], skill: int = 1) -> dict[str, Any]:
    return {each["id"].removeprefix(f"skill-{skill}-"): each for each in numbers["skills"][skill - 1]["figures"]}


def statistics(checkpoint: Path, skill: str = "skill") -> dict[str, np.ndarray]:
    found = load_file(checkpoint / "reproduce" / "statistics.safetensors")
    return {name.removeprefix(f"{skill}."): each for name, each in found.items() if name.startswith(f"{skill}.")}


def summary_of(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "reproduce" / "summary.json").read_text())


def series(figure: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [row for row in figure["rows"] if row["series"] == name]


@pytest.mark.slow
def test_share_inside_over_alpha_is_the_distribution_of_the_scores(
    tiny: Callable[..., Exported], reported: Reported
) -> None:
    exported = tiny("llama")
    _, numbers = reported(exported.checkpoint)
    found, stored = numbers["skills"][0]["key_space"], statistics(exported.checkpoint)
    figure = figures(numbers)["alpha"]
    for name, key in (
        ("forget set", "scores.forget.report"),
        ("retain set", "scores.retain.report.prompt"),
        ("harmless, over answers", "scores.retain.report.answer"),
    ):
        scores, rows = stored[key][:, found["layer"]], series(figure, name)
        assert rows[0]["share"] == 0 and rows[-1]["share"] == 1 and rows[0]["n"] == len(scores)
        for alpha in (2.0, 3.7, 5.0, 8.0, 30.0, *scores):
            inside = max((row["share"] for row in rows if row["alpha"] <= alpha), default=0)
            assert inside == pytest.approx(np.mean(scores <= alpha), abs=1e-12)
    (rule,) = figure["rules"]
    assert rule["value"] == found["alpha"]["value"] == 5.0


def test_layers_agree_with_the_summary(tiny: Callable[..., Exported], reported: Reported) -> None:
    exported = tiny("llama")
    _, numbers = reported(exported.checkpoint)
    drawn = figures(numbers)
    for row in summary_of(exported.checkpoint)["skills"][0]["key_space"]["layers"]:
        for name, key in (
            ("forget set", "blocked"),
            ("retain set", "retain"),
            ("harmless, over answers", "over_answers"),
        ):
            found = series(drawn["layers"], name)[row["layer"]]
            assert (found["layer"], found["alpha"]) == (row["layer"], row["alpha"])
            assert {key: found[key] for key in ("hits", "total", "low", "high")} == {
                field: row[key][field] for field in ("hits", "total", "low", "high")
            }
            assert found["share"] == row[key]["rate"]


def test_separation_and_volume(tiny: Callable[..., Exported], reported: Reported) -> None:
    exported = tiny("llama")
    _, numbers = reported(exported.checkpoint)
    stored, drawn = statistics(exported.checkpoint), figures(numbers)
    layers = summary_of(exported.checkpoint)["skills"][0]["key_space"]["layers"]
    ours, theirs = stored["scores.forget.report"], stored["scores.retain.report.prompt"]
    for layer in range(3):
        u = mannwhitneyu(theirs[:, layer], ours[:, layer]).statistic
        area = series(drawn["separation"], "retain set")[layer]["share"]
        assert area == pytest.approx(u / (len(ours) * len(theirs)), abs=1e-12)
        sides = 2 * layers[layer]["alpha"] * stored["ksd.plain.deviation"][layer]
        volume = series(drawn["volume"], "plain prompts")[layer]["log10_side"]
        assert 10 ** (volume * len(sides)) == pytest.approx(np.prod(sides), rel=1e-6)


def test_the_gaussian_check_on_gaussians() -> None:
    """Where keys are independent Gaussians the shares are uniform and the median is as expected."""
    generator = np.random.default_rng(0)
    fitted, dimensions = 40, 64
    scores = []
    for _ in range(400):
        keys = generator.normal(3, 2, (fitted + 1, dimensions))
        mean, deviation = keys[:-1].mean(0), keys[:-1].std(0, ddof=1)
        scores.append(np.abs((keys[-1] - mean) / deviation).max())
    shares = gaussian_share(np.array(scores), np.full(400, float(fitted)), dimensions)
    assert np.abs(np.sort(shares) - np.arange(400) / 400).max() < 0.08
    assert np.median(scores) == pytest.approx(expected_median(np.array([40.0]), dimensions), abs=0.15)
    # With many fitted prompts, Student's t is the Gaussian.
    many = gaussian_share(np.array([3.0]), np.array([1e7]), dimensions)[0]
    assert many == pytest.approx((2 * norm.cdf(3.0) - 1) ** dimensions, rel=1e-4)


def test_prompts_nearest_to_the_boundary(tiny: Callable[..., Exported], reported: Reported) -> None:
    exported = tiny("llama")
    _, numbers = reported(exported.checkpoint)
    found, stored = numbers["skills"][0]["key_space"], statistics(exported.checkpoint)
    scores = np.concatenate(
        [stored[f"scores.{name}"][:, found["layer"]] for name in ("forget.report", "retain.report.prompt")]
    )
    inside, outside = np.sort(scores[scores <= 5.0])[::-1], np.sort(scores[scores > 5.0])
    assert [row["score"] for row in found["nearest"]["inside"]] == inside[:8].tolist()
    assert [row["score"] for row in found["nearest"]["outside"]] == outside[:8].tolist()
    texts = {"forget": FORGET, "harmless": RETAIN}
    for row in found["nearest"]["inside"] + found["nearest"]["outside"]:
        text = texts[row["side"]][row["row"] - 1]
        assert row["sha256"] == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.slow
def test_what_was_tried_for_the_neurons(several: Several, reported: Reported) -> None:
    _, numbers = reported(several.checkpoint)
    neurons = summary_of(several.checkpoint)["skills"][0]["neurons"]
    drawn = figures(numbers)
    trials = neurons["trials"]
    assert [row["ratio"] for row in drawn["forget-texts"]["rows"]] == [math.exp(t["forget_rise"]) for t in trials]
    assert [row["ratio"] for row in drawn["retain-texts"]["rows"]] == [math.exp(t["upper"]) for t in trials]
    assert {(row["series"], row["beta"]) for row in drawn["retain-texts"]["rows"]} == {
        (t["score"], t["beta"]) for t in trials
    }
    limit = next(rule for rule in drawn["retain-texts"]["rules"] if rule["label"] == "limit")
    assert limit["value"] == math.exp(neurons["max_retain_loss"])
    counts = {str(row["layer"]): row["neurons"] for row in drawn["neurons"]["rows"] if row["neurons"]}
    assert counts == neurons["layers"]
    assert {row["texts"]: row["ratio"] for row in numbers["skills"][0]["neurons"]["texts"]} == {
        name: each["perplexity_ratio"] for name, each in neurons["texts"].items()
    }


def test_which_skill_holds_which_prompts(several: Several, reported: Reported) -> None:
    _, numbers = reported(several.checkpoint)
    cells = {(row["prompts"], row["by"]): (row["hits"], row["total"]) for row in numbers["matrix"]["rows"]}
    records = json.loads((several.checkpoint / "reproduce" / "prompts.json").read_text())
    found = {skill["name"]: skill["key_space"] for skill in summary_of(several.checkpoint)["skills"]}
    for name in ("sums", "songs <b>"):
        stored = statistics(several.checkpoint, name)
        layer, alpha = found[name]["layer"], found[name]["alpha"]["value"]
        own = stored["scores.forget.report"][:, layer] <= alpha
        assert cells[name, name] == (own.sum(), len(own))
        sources = np.array([record["source"] for record in records[name]["retain.report"]])
        inside = stored["scores.retain.report.prompt"][:, layer] <= alpha
        for other in {row[0] for row in cells} - {name}:
            theirs = inside[sources == f"skill {other}"]
            assert cells.get((other, name), (0, 0)) == (theirs.sum(), len(theirs))
    assert not any(by == "letters" for _, by in cells)  # pruned, never refused


@pytest.mark.parametrize(
    ("method", "there", "missing"),
    [
        ("ksd", {"alpha", "volume"}, {"neurons", "forget-texts"}),
        ("na", {"neurons", "retain-texts"}, {"alpha", "median"}),
    ],
)
def test_what_a_checkpoint_does_not_have_is_left_out(
    tiny: Callable[..., Exported], reported: Reported, method: str, there: set[str], missing: set[str]
) -> None:
    out, numbers = reported(tiny("llama", method).checkpoint)
    assert there <= figures(numbers).keys() and not missing & figures(numbers).keys() and numbers["matrix"] is None
    page = (out / "report.html").read_text()
    assert "All skills" not in page and ("Nearest to the boundary" in page) == (method == "ksd")


def test_without_any_harmless_prompts(tmp_path: Path, reported: Reported) -> None:
    base, forget = tiny_model(tmp_path / "base", chat=False), write_prompts(tmp_path / "f.jsonl", FORGET)
    given = {"model": str(base), "out": tmp_path / "out", "forget": (str(forget),), "everyday": False, "quiet": True}
    with one_thread():
        export(merged_settings({}, {**given, "layer": 1, "alpha": 5.0, "force": True}), lambda text: None)
    _, numbers = reported(tmp_path / "out")
    assert {row["series"] for row in figures(numbers)["alpha"]["rows"]} == {"forget set"}
    assert "separation" not in figures(numbers)


def test_warnings_of_the_export(several: Several, reported: Reported) -> None:
    out, numbers = reported(several.checkpoint)
    warnings = summary_of(several.checkpoint)["warnings"]
    assert {each["skill"] for each in warnings} >= {"letters", "songs <b>"}
    assert numbers["warnings"] == [
        each["message"] if each["skill"] is None else f"{each['skill']}: {each['message']}" for each in warnings
    ]
    page = html.unescape((out / "report.html").read_text())
    assert all(f'<p class="warn">{line}.</p>' in page for line in numbers["warnings"])


def test_every_figure_says_what_and_how_many(several: Several, reported: Reported) -> None:
    _, numbers = reported(several.checkpoint)
    drawn = [numbers["matrix"], *(each for skill in numbers["skills"] for each in skill["figures"])]
    # Gaussian neurons need the base model, methods side by side are drawn by examples/paper (tests/test_paper.py), and
    # shares are of regions along discriminants (test_discriminant.py).
    assert {each["kind"] for each in drawn} == set(CHARTS) - {"neuron_gaussian", "methods", "shares"}
    for each in drawn:
        assert each["title"] and each["rows"]
        assert re.search(r"[Pp]art", each["caption"]) or each["kind"] == "neurons", each["caption"]
        assert re.search(r"\d", each["caption"]) or each["kind"] == "matrix"
        assert "{" not in each["caption"]
