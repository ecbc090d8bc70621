"""Key Space Detection in figures: shares inside over alpha, the layers, the hypercubes' size, the Gaussian check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from scipy.stats import ecdf, kstest, mannwhitneyu, t

from exporter.checkpoint.card.figure import Figure, Row, figure_id
from exporter.checkpoint.reading import SCORED, Floats, Records, StoredSkill
from exporter.checkpoint.summary import KeySpaceSummary
from exporter.common.rates import rate
from exporter.common.text import counted
from exporter.prompts.formats import SECOND_TURN, SYSTEM
from exporter.prompts.packaged import EVERYDAY

FORGET, UNSEEN = "forget set", "forget set, unseen formats"
RETAIN, EVERYDAY_PROMPTS, OTHERS, ANSWERS = "retain set", "everyday prompts", "other skills", "harmless, over answers"
NEAR_MISSES = "near misses"
MEASURED, EXPECTED = "measured", "independent Gaussians"

NEAREST = 8
"""Prompts that are listed on each side of the boundary."""
REPORT = "Report part: prompts that nothing was fitted or chosen on."


def key_space_figures(skill: StoredSkill, number: int, names: list[str]) -> list[Figure]:
    """All figures of a skill that has hypercubes. names: of all skills, by which the others' prompts are known."""
    found = skill.summary.key_space
    assert found is not None
    series = scores_by_series(skill, names)
    chosen = {"value": found.layer, "label": f"layer {found.layer}, taken"}
    return [
        alpha_figure(found, number, series),
        layer_figure(found, number, series, chosen),
        *separation_figures(number, series, chosen),
        volume_figure(skill, found, number, chosen),
        *gaussian_figures(skill, found.hypercubes, number, chosen),
    ]


def scores_by_series(skill: StoredSkill, names: list[str]) -> dict[str, Floats]:
    """Scores (n, layers) of the report part by whose prompts they are, without empty ones."""
    tensors, records = skill.tensors, skill.prompts
    sources = [record["source"] for record in records["retain.report"]]
    others = {f"skill {name}" for name in names}
    retain = tensors["scores.retain.report.prompt"]
    unseen = [record["format"] in (SYSTEM, SECOND_TURN) for record in records["forget.report.unseen"]]
    series = {
        FORGET: tensors["scores.forget.report"],
        UNSEEN: tensors["scores.forget.report.unseen"][unseen],
        RETAIN: retain[[source != EVERYDAY and source not in others for source in sources]],
        EVERYDAY_PROMPTS: retain[[source == EVERYDAY for source in sources]],
        OTHERS: retain[[source in others for source in sources]],
        ANSWERS: tensors["scores.retain.report.answer"],
    }
    return {name: scores for name, scores in series.items() if len(scores)}


def alpha_figure(found: KeySpaceSummary, number: int, series: Mapping[str, Floats]) -> Figure:
    layer, alpha = found.layer, found.alpha.value
    everything = [alpha, *(value for scores in series.values() for value in scores[:, layer])]
    low, high = min(everything) / 1.1, max(everything) * 1.1
    rows: list[Row] = [
        {"series": name, "alpha": value, "share": share, "n": len(scores)}
        for name, scores in series.items()
        for value, share in distribution(scores[:, layer], low, high)
    ]
    caption = (
        f"Share of prompts whose last token's key vector is inside a hypercube of layer {layer} with half sides of "
        f"alpha deviations: the distribution of their scores. {sizes(series)}. {REPORT} The line is the alpha of "
        "the checkpoint. A good one has the forget set to its left and all else to its right."
    )
    if UNSEEN in series:
        caption += " Unseen formats: system prompts and exchanges, against hypercubes fitted without them."
    if ANSWERS in series:
        caption += (
            " Over answers: the least score from the prompt's last token through the greedy answer (retain, everyday "
            "and other skills' prompts together)."
        )
    title = f"Share of prompts inside the hypercube over alpha, layer {layer}"
    rules = [{"value": alpha, "label": f"alpha {alpha:.3g}"}]
    return Figure(figure_id(number, "alpha"), "alpha", title, caption, rows, rules)


def distribution(scores: Floats, low: float, high: float) -> list[tuple[float, float]]:
    """The empirical distribution of scores (n,), as the corners of its steps from low to high."""
    steps = ecdf(scores).cdf
    return [(low, 0.0), *zip(steps.quantiles.tolist(), steps.probabilities.tolist(), strict=True), (high, 1.0)]


def sizes(series: Mapping[str, Floats]) -> str:
    return ", ".join(f"{name}: {len(scores)}" for name, scores in series.items()).capitalize()


def layer_figure(found: KeySpaceSummary, number: int, series: Mapping[str, Floats], chosen: Row) -> Figure:
    rows: list[Row] = []
    for name, scores in series.items():
        for layer in found.layers:
            hits = int((scores[:, layer.layer] <= layer.alpha).sum())
            about = {"series": name, "layer": layer.layer, "alpha": layer.alpha, "share": hits / len(scores)}
            rows.append(about | asdict(rate(hits, len(scores))))
    caption = (
        "Share of prompts inside the hypercubes at each layer, each layer with the alpha that it would get. "
        f"{sizes(series)}. {REPORT} The forget set should be at the top and all else at the bottom. The layer was "
        "taken by the choose part, which these prompts are not of."
    )
    title = "Share of prompts inside the hypercube by layer"
    return Figure(figure_id(number, "layers"), "layers", title, caption, rows, [chosen])


def separation_figures(number: int, series: Mapping[str, Floats], chosen: Row) -> list[Figure]:
    """How well a layer's scores part forget prompts from others, whatever alpha is; nothing where there are none."""
    rows: list[Row] = []
    forget = series[FORGET]
    others = {name: scores for name, scores in series.items() if name not in (FORGET, UNSEEN)}
    for name, scores in others.items():
        # Ties count half.
        shares = mannwhitneyu(scores, forget).statistic / (len(forget) * len(scores))
        rows += [{"series": name, "layer": layer, "share": share} for layer, share in enumerate(shares.tolist())]
    caption = (
        "Share of pairs of a forget prompt and another one in which the forget prompt is nearer to the middle of its "
        "hypercube (area under the ROC curve of the scores): 1 parts them whole, 0.5 is chance. No alpha is in it. "
        f"{sizes({FORGET: forget, **others})}. {REPORT}"
    )
    figure = Figure(figure_id(number, "separation"), "separation", "Separation by layer", caption, rows, [chosen])
    return [figure] if rows else []


def volume_figure(skill: StoredSkill, found: KeySpaceSummary, number: int, chosen: Row) -> Figure:
    alphas = np.array([row.alpha for row in found.layers])
    rows: list[Row] = []
    for name in found.hypercubes:
        sides = np.log10(2 * alphas[:, None] * skill.tensors[f"ksd.{name}.deviation"])
        for layer, value in enumerate(sides.mean(1).tolist()):
            rows.append({"series": f"{name} prompts", "layer": layer, "log10_side": value})
    dimensions = skill.tensors[f"ksd.{found.hypercubes[0]}.deviation"].shape[1]
    caption = (
        "Volume of the hypercubes: log10 of the side length 2 · alpha · deviation, in units of the key vector, mean "
        f"over its {dimensions} dimensions (so log10 of the volume divided by {dimensions}), with the alpha that each "
        "layer would get. One line for each hypercube: prompts of each format have their own. Fit and calibrate part."
    )
    return Figure(figure_id(number, "volume"), "volume", "Volume of the hypercube by layer", caption, rows, [chosen])


def gaussian_figures(skill: StoredSkill, hypercubes: Sequence[str], number: int, chosen: Row) -> list[Figure]:
    """Scores of prompts outside the fit part, against those that independent Gaussians would give."""
    tensors, records = skill.tensors, skill.prompts
    scores = np.concatenate([tensors["scores.forget.calibrate"], tensors["scores.forget.report"]])
    drawn = [*records["forget.calibrate"], *records["forget.report"]]
    dimensions = tensors[f"ksd.{hypercubes[0]}.deviation"].shape[1]
    fitted = fit_counts(records["forget.fit"], drawn, hypercubes)
    if min(fitted) < 3 or not len(scores):
        return []
    shares = gaussian_share(scores, fitted[:, None], dimensions)
    expected = expected_median(fitted, dimensions)
    distances, medians = [], []
    for layer in range(scores.shape[1]):
        distance = float(kstest(shares[:, layer], "uniform").statistic)
        distances.append({"series": MEASURED, "layer": layer, "distance": distance})
        medians.append({"series": MEASURED, "layer": layer, "score": float(np.median(scores[:, layer]))})
        medians.append({"series": EXPECTED, "layer": layer, "score": expected})
    of = f"{counted(len(scores), 'forget prompt')} of the calibrate and report parts"
    several = "; they are of the format that a prompt has, where a score is the least of all hypercubes"
    rest = (
        "Alpha does not rest on this assumption: it is taken from the scores themselves. Independent Gaussians stand "
        f"for {dimensions} key dimensions with the fitted means and deviations, and for what {int(min(fitted))} or "
        f"more fitted prompts know of these{several if len(hypercubes) > 1 else ''}."
    )
    critical = {"value": float(1.358 / np.sqrt(len(scores))), "label": "chance", "across": True}
    return [
        Figure(
            figure_id(number, "gaussian"),
            "gaussian",
            "Are keys Gaussian? Distance by layer",
            "Greatest distance between the distribution of the scores and that of independent Gaussians "
            f"(Kolmogorov-Smirnov, 0 to 1), {of}. If they were such, it would be under the dashed line 19 times of "
            f"20. {rest}",
            distances,
            [critical],
        ),
        Figure(
            figure_id(number, "median"),
            "median",
            "Are keys Gaussian? Median score by layer",
            f"Median of the scores, the largest of all dimensions' deviations from the mean, {of}, and the median "
            f"that independent Gaussians would give. Above it keys have heavier tails. {rest}",
            medians,
            [chosen],
        ),
    ]


def fit_counts(fit: Records, drawn: Records, hypercubes: Sequence[str]) -> Floats:
    """How many prompts the hypercube was fitted on that belongs to each prompt's format: (n,)."""
    counts = {name: sum(record["format"] == name for record in fit) for name in hypercubes}
    return np.array([counts.get(record["format"], len(fit)) or len(fit) for record in drawn], dtype=np.float64)


def gaussian_share(scores: Floats, fitted: Floats, dimensions: int) -> Floats:
    """Chance that the largest of so many independent standardised deviations is at most the score.

    A new value less the mean of n fitted ones, over their deviation, is sqrt(1 + 1/n) times Student's t of n - 1.
    """
    beyond = 2 * t.sf(scores / np.sqrt(1 + 1 / fitted), fitted - 1)
    return np.asarray(np.exp(dimensions * np.log1p(-np.minimum(beyond, 1 - 1e-15))), dtype=np.float64)


def expected_median(fitted: Floats, dimensions: int) -> float:
    """The median of the largest deviation, for prompts as they were drawn: the mean over them."""
    beyond = -np.expm1(np.log(0.5) / dimensions)
    return float(np.mean(t.isf(beyond / 2, fitted - 1) * np.sqrt(1 + 1 / fitted)))


def nearest(skill: StoredSkill, found: KeySpaceSummary) -> dict[str, list[Row]]:
    """The prompts of the report part nearest to the boundary, "inside" and "outside", nearest first."""
    layer, alpha = found.layer, found.alpha.value
    scores = {"forget": "scores.forget.report", "harmless": "scores.retain.report.prompt"}
    rows: list[Row] = []
    for side, name in scores.items():
        for record, score in zip(skill.prompts[SCORED[name]], skill.tensors[name][:, layer].tolist(), strict=True):
            known = {key: record[key] for key in ("source", "row", "sha256", "format")}
            rows.append({"side": side, **known, "score": score, "ratio": score / alpha})
    ordered = sorted(rows, key=lambda row: (abs(np.log(max(row["ratio"], 1e-300))), row["sha256"]))
    return {
        "inside": [row for row in ordered if row["score"] <= alpha][:NEAREST],
        "outside": [row for row in ordered if row["score"] > alpha][:NEAREST],
    }
