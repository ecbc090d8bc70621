"""What Neuron Adjust forgets and costs over beta (Fig. 7), beside the authors' code and Selective Pruning.

Neurons are chosen by training texts, as an export chooses them. Forgetting and cost are of test texts, measured
through the runtime that ships.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from examples.paper.experiment import Results, Table, counted
from examples.paper.neurons import NAMES, SCORES, Losses, Method, Neurons, NeuronSettings, dropped, losses, test_texts
from exporter.checkpoint.card.figure import Figure, Row
from exporter.common.rates import Rate
from exporter.evaluation.comparison import DROP
from exporter.methods.neurons.scores import ATTRIBUTION
from exporter.methods.neurons.trade_off import rise, upper_rise
from exporter.models.files import find_base
from exporter.models.loading import load

FORGET = "forget"


class Settings(NeuronSettings):
    """forget_test: texts of the skill; others: by their names texts of other skills; limit: texts of each of these;
    methods, scores of Neuron Adjust, betas in per cent: what is tried, all with all."""

    forget_test: str
    others: dict[str, str]
    limit: int = 60
    methods: tuple[Method, ...] = ("na", "official", "sp")
    scores: tuple[str, ...] = (ATTRIBUTION, "signed-mean")
    betas: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)


def run(settings: Settings) -> Results:
    loaded = load(find_base(settings.model), settings.dtype, settings.device)
    neurons = Neurons(settings, loaded)
    tests = {FORGET: test_texts(settings, loaded, settings.forget_test, "forget_test", settings.limit)}
    for name, spec in settings.others.items():
        tests[name] = test_texts(settings, loaded, spec, f"others.{name}", settings.limit)
    before = {name: losses(neurons.prober, texts, f"base: {name}") for name, texts in tests.items()}
    rows: list[Row] = []
    for method, score in tried(settings):
        for beta in settings.betas:
            what = f"{NAMES[method]}, {score} {beta:g} %"
            with neurons.changed(method, score, beta) as (prober, count):
                after = {name: losses(prober, texts, f"{what}: {name}") for name, texts in tests.items()}
            effects = {name: effect(before[name], after[name], settings.seed) for name in tests}
            rows.append({"series": f"{NAMES[method]}, {score}", "beta": beta, "neurons": count, "texts": effects})
    return report(settings, before, rows)


def tried(settings: Settings) -> list[tuple[Method, str]]:
    found: list[tuple[Method, str]] = []
    for method in settings.methods:
        found += [(method, score) for score in (settings.scores if method == "na" else (SCORES[method],))]
    return found


def effect(before: Losses, after: Losses, seed: int) -> Row:
    """What changed neurons do to texts: ratio of perplexities, upper end of its 90 % interval, answers lost."""
    up, upper = rise(before.whole, after.whole), upper_rise(before.whole, after.whole, seed)
    lost = dropped(before.answers, after.answers)
    return {"rise": up, "ratio": math.exp(up), "upper": math.exp(upper), "dropped": asdict(lost)}


def report(settings: Settings, before: Mapping[str, Losses], rows: Sequence[Row]) -> Results:
    lines = []
    for row in rows:
        line = {"method, score": row["series"], "beta": f"{row['beta']:g} %", "neurons": str(row["neurons"])}
        for name, each in row["texts"].items():
            line |= {f"{name}: perplexity": f"x{each['ratio']:.3f}", f"{name}: lost": counted(Rate(**each["dropped"]))}
        lines.append(line)
    base = ", ".join(f"{name} {math.exp(each.whole.mean):.2f}" for name, each in before.items())
    note = (
        f"At most {settings.limit} test texts a source, seed {settings.seed}, {settings.dtype}. Perplexity of the "
        f"base: {base}. Lost: answers whose mean token loss is up by {DROP} nats or more, with 95 % intervals, of "
        "texts that have an answer."
    )
    figures: list[Figure] = []
    for name in before:
        found = [
            {"series": row["series"], "beta": row["beta"], "ratio": row["texts"][name]["ratio"]}
            | {"upper": math.log(row["texts"][name]["upper"])}
            for row in rows
        ]
        title = f"{settings.title}: {name} texts over beta"
        figures.append(Figure(f"beta-{len(figures)}", "trade_off", title, note, found))
    losses_of_base = {name: {"loss": each.whole.mean, "texts": len(each.whole.total)} for name, each in before.items()}
    table = Table(f"{settings.title}: neurons changed, over beta", lines, note)
    return Results(settings, {"base": losses_of_base, "trials": list(rows)}, [table], figures)
