"""Which skill's hypercubes hold which skill's prompts: the clustering check and the language matrix (Figs. 5, 6, 8).

Every skill's prompts in turn are the forget set. Their keys' mean and deviation come from the fit part, alpha from the
calibration part, what is reported from the test part; all prompts are under the same template, so that a hypercube
cannot tell the templates apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from examples.paper.experiment import Experiment, Results, Table
from exporter.checkpoint.card.figure import Figure, Row
from exporter.common.errors import BadInput
from exporter.common.progress import Progress
from exporter.common.rates import rate
from exporter.evaluation.items import sample
from exporter.methods.key_space.calibration import calibrate
from exporter.methods.key_space.hypercubes import KeyMoments, KeySpace
from exporter.models.files import find_base
from exporter.models.loading import load
from exporter.models.prober import Prober
from exporter.models.tokens import context_of
from exporter.prompts.formats import PLAIN, Formatter, Query
from exporter.prompts.packaged import EVERYDAY, everyday_prompts
from exporter.reporting.key_space import distribution


class Settings(Experiment):
    """skills: by their names sources of prompts; others: prompts that are no forget set of their own.

    fit, calibrate, test: prompts of each part; target: share of a skill's prompts that alpha is to hold; everyday:
    the packaged prompts among the others; everyday_without: kinds of them that are one of the skills; wording: of the
    skills' prompts, out of the columns of their sources, distinct: one of these (see `Experiment.prompts`).
    """

    skills: dict[str, str]
    others: dict[str, str] = {}
    everyday: bool = False
    everyday_without: tuple[str, ...] = ()
    prompt_template: str = "auto"
    wording: str | None = None
    distinct: str | None = None
    fit: int = 100
    calibrate: int = 50
    test: int = 50
    target: float = 0.95


@dataclass(frozen=True)
class Parts:
    fit: Sequence[Query]
    calibrate: Sequence[Query]
    test: Sequence[Query]


PARTS = ("calibrate", "test")
Scores = Mapping[str, Mapping[str, Tensor]]
"""Scores (n, layers) of one part's prompts: by the skill whose hypercubes they are of, then by whose prompts."""


def run(settings: Settings) -> Results:
    loaded = load(find_base(settings.model), settings.dtype, settings.device)
    formatter = Formatter(
        loaded.tokenizer,
        template=settings.prompt_template,
        formats=PLAIN,
        seed=settings.seed,
        max_length=context_of(loaded.model),
    )
    prober = Prober(loaded, settings.batch_size, progress=Progress(quiet=False))
    sets = read_sets(settings, formatter)
    keys = {name: fit(prober, sets[name].fit, name) for name in settings.skills}
    scores: dict[str, dict[str, dict[str, Tensor]]] = {part: {name: {} for name in keys} for part in PARTS}
    for other, parts in sets.items():
        for part in PARTS:
            # One pass over a set's prompts for the hypercubes of all skills.
            for name, each in score(prober, getattr(parts, part), keys, f"{other}: {part}").items():
                scores[part][name][other] = each
    return report(settings, prober.layers, scores["calibrate"], scores["test"])


def read_sets(settings: Settings, formatter: Formatter) -> dict[str, Parts]:
    """Prompts of every set in their parts, drawn by the seed and each prompt itself."""
    sets = {}
    for key, sources in (("skills", settings.skills), ("others", settings.others)):
        for name, spec in sources.items():
            wording = (settings.wording, settings.distinct) if key == "skills" else (None, None)
            prompts = settings.prompts(spec, f"{key}.{name}", *wording)
            sizes = (settings.fit if key == "skills" else 0, settings.calibrate, settings.test)
            if len(prompts) < sum(sizes):
                raise BadInput(f"{key}.{name}: {len(prompts)} different prompts, {sum(sizes)} are needed")
            sets[name] = divide(formatter.format(sample(prompts, sum(sizes), settings.seed), name), sizes)
    if settings.everyday:
        prompts = everyday_prompts(settings.everyday_without)
        half = len(prompts) // 2
        sets[EVERYDAY] = divide(formatter.format(prompts, EVERYDAY), (0, half, len(prompts) - half))
    return sets


def divide(queries: Sequence[Query], sizes: tuple[int, int, int]) -> Parts:
    """Consecutive parts of the queries in the order of their digests, which says nothing about them."""
    ordered = sorted(queries, key=lambda query: query.prompt.sha256)
    ends = [sizes[0], sizes[0] + sizes[1]]
    return Parts(ordered[: ends[0]], ordered[ends[0] : ends[1]], ordered[ends[1] :])


def fit(prober: Prober, queries: Sequence[Query], name: str) -> KeySpace:
    moments = KeyMoments()
    for rows, vectors in prober.last_token_keys(queries, f"{name}: fit"):
        moments.update([queries[row] for row in rows], vectors)
    return moments.key_space()


def score(prober: Prober, queries: Sequence[Query], keys: Mapping[str, KeySpace], what: str) -> dict[str, Tensor]:
    """Scores (n, layers) of the queries' last tokens against each skill's hypercubes."""
    scores = {name: torch.zeros(len(queries), prober.layers, dtype=torch.float64) for name in keys}
    for rows, vectors in prober.last_token_keys(queries, what):
        for name, space in keys.items():
            scores[name][rows] = space.scores(vectors)
    return scores


def report(settings: Settings, layers: int, calibration: Scores, test: Scores) -> Results:
    names = list(settings.skills)
    alphas = {
        name: [calibrate(calibration[name][name][:, layer], settings.target).value for layer in range(layers)]
        for name in names
    }

    def share(scores: Scores, name: str, other: str, layer: int) -> float:
        return float((scores[name][other][:, layer] <= alphas[name][layer]).double().mean())

    def strangers(name: str, layer: int) -> float:
        """Mean share of the other sets' calibration parts inside: what a layer is chosen by."""
        return mean([share(calibration, name, other, layer) for other in calibration[name] if other != name])

    best = {name: min(range(layers), key=lambda layer: strangers(name, layer)) for name in names}
    by_layer: list[Row] = []
    for layer in range(layers):
        cells = {name: {other: share(test, name, other, layer) for other in names} for name in names}
        rest = [share(test, name, other, layer) for name in names for other in test[name] if other not in names]
        diagonal = [cells[name][name] for name in names]
        off = [cells[name][other] for name in names for other in names if other != name]
        row = {"layer": layer, "diagonal": mean(diagonal), "off_diagonal": mean(off)}
        by_layer.append(row | ({"others": mean(rest)} if rest else {}))
    choices = {
        "best": ("each skill's best layer", best),
        "last": ("the last layer, as in the paper", dict.fromkeys(names, layers - 1)),
    }
    tables, figures, numbers = [], [], {}
    for key, (title, chosen) in choices.items():
        table, figure, found = matrix(settings, key, title, chosen, alphas, test)
        tables.append(table)
        figures.append(figure)
        numbers[key] = found
    note = (
        f"Test parts, {settings.test} prompts of each set; alpha of each layer from {settings.calibrate} calibration "
        f"prompts for {settings.target:.0%}; means of shares inside."
    )
    columns = {"diagonal": "own prompts", "off_diagonal": "other skills' prompts", "others": "all else"}
    rows = [
        {"layer": str(row["layer"])} | {title: f"{row[key]:.3f}" for key, title in columns.items() if key in row}
        for row in by_layer
    ]
    tables.append(Table(f"{settings.title}: shares inside by layer", rows, note))
    figures += alpha_figures(settings, best, alphas, test)
    return Results(settings, numbers | {"layers": by_layer, "alphas": alphas}, tables, figures)


def matrix(
    settings: Settings,
    key: str,
    title: str,
    chosen: Mapping[str, int],
    alphas: Mapping[str, Sequence[float]],
    test: Scores,
) -> tuple[Table, Figure, dict[str, Any]]:
    """Counts of test prompts inside each skill's hypercubes, at a layer for each skill."""
    names = list(settings.skills)
    rows: list[Row] = []
    for other in test[names[0]]:
        for name in names:
            inside = test[name][other][:, chosen[name]] <= alphas[name][chosen[name]]
            found = rate(int(inside.sum()), len(inside))
            about = {"prompts": other, "by": name, "layer": chosen[name], "alpha": alphas[name][chosen[name]]}
            rows.append(about | {"hits": found.hits, "total": found.total, "share": found.rate})
            rows[-1] |= {"low": found.low, "high": found.high}
    diagonal = [row["share"] for row in rows if row["prompts"] == row["by"]]
    off = [row["share"] for row in rows if row["prompts"] in names and row["prompts"] != row["by"]]
    lines = []
    for other in dict.fromkeys(row["prompts"] for row in rows):
        cells = {row["by"]: rate(row["hits"], row["total"]) for row in rows if row["prompts"] == other}
        counts = {f"inside {name}": f"{cells[name].hits}/{cells[name].total}" for name in names}
        lines.append({"prompts": other} | counts)
    lines.append(
        {"prompts": "layer, alpha"} | {f"inside {n}": f"{chosen[n]}, {alphas[n][chosen[n]]:.2f}" for n in names}
    )
    means = f"Mean of the diagonal {mean(diagonal):.3f}, off it {mean(off):.3f}."
    note = (
        f"{means} {settings.fit} prompts fitted, alpha from {settings.calibrate} more for {settings.target:.0%}; "
        f"layers chosen on the calibration parts; {settings.test} test prompts of each set (everyday: half of them), "
        f"seed {settings.seed}, {settings.dtype}. Exact 95 % intervals: {intervals(settings.test)}."
    )
    numbers = {"diagonal": mean(diagonal), "off_diagonal": mean(off), "cells": rows}
    heading = f"{settings.title}: prompts inside hypercubes, {title}"
    return Table(heading, lines, note), Figure(f"matrix-{key}", "matrix", heading, note, rows), numbers


def intervals(total: int) -> str:
    """What none, one and all of so many prompts may still be."""
    found = [rate(hits, total) for hits in (0, 1, total)]
    return ", ".join(f"of {each.hits}/{total} {each.low:.1%} - {each.high:.1%}" for each in found)


def alpha_figures(
    settings: Settings,
    best: Mapping[str, int],
    alphas: Mapping[str, Sequence[float]],
    test: Scores,
) -> list[Figure]:
    """Share of each set inside over alpha, for every skill at its layer (Fig. 5)."""
    figures = []
    for number, (name, layer) in enumerate(best.items()):
        inside = {other: each[:, layer] for other, each in test[name].items()}
        alpha = alphas[name][layer]
        values = [alpha, *(value for each in inside.values() for value in each.tolist())]
        low, high = min(values) / 1.1, max(values) * 1.1
        rows: list[Row] = [
            {"series": other, "alpha": value, "share": share, "n": len(each)}
            for other, each in inside.items()
            for value, share in distribution(each.numpy(), low, high)
        ]
        title = f"{name}: share of prompts inside its hypercube over alpha, layer {layer}"
        caption = f"Test parts, {', '.join(f'{other}: {len(each)}' for other, each in inside.items())}."
        rules = [{"value": alpha, "label": f"alpha {alpha:.3g}"}]
        figures.append(Figure(f"alpha-{number}", "alpha", title, caption, rows, rules))
    return figures


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
