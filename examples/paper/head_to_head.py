"""Key Space Detection against Neuron Adjust, the authors' code and Selective Pruning at the same forgetting.

Each method is tuned on training prompts until it forgets the same share of them, exported by `unskill export` and
judged by `unskill evaluate` on test prompts: which are refused, whose reference answers are lost, what happens to
other skills and to MMLU, and how long decoding takes.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, Literal

from examples.paper.experiment import Results, Table, counted
from examples.paper.neurons import NAMES, SCORES, Losses, Method, Neurons, NeuronSettings, Texts, dropped, losses
from examples.paper.speed import Speed, compare_speed
from exporter.checkpoint.card.figure import Figure, Row
from exporter.common.errors import RunFailed
from exporter.common.rates import Rate
from exporter.evaluation.comparison import DROP
from exporter.evaluation.run import evaluate
from exporter.evaluation.settings import EvaluateSettings
from exporter.models.files import find_base
from exporter.models.loading import load
from exporter.prompts.texts import answer_starts

KSD = "Key Space Detection"
# Bisections, in the logarithm of beta, between the last share of neurons that forgets too little and the next.
BISECTIONS = 3


class Settings(NeuronSettings):
    """forget_test: prompts and reference answers of the skill; others: by their names those of other skills; choice,
    shots: multiple choice in MMLU's form and its solved examples; limit: items of each of these; target: share of
    forget prompts to be refused or lost; betas: per cent, tried upwards until that is reached on `tuned_on` held-out
    training texts."""

    forget_test: str
    others: dict[str, str]
    choice: str | None = None
    shots: str | None = None
    prompt_template: str = "auto"
    limit: int = 200
    target: float = 0.8
    tuned_on: int = 80
    methods: tuple[Literal["ksd", "na", "official", "sp"], ...] = ("ksd", "na", "official", "sp")
    betas: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


def run(settings: Settings) -> Results:
    settings.out.mkdir(parents=True, exist_ok=True)
    kept, tuner = Kept(settings), Tuner(settings)
    rows = [kept.get(method, partial(measure, settings, method, tuner)) for method in settings.methods]
    # Last and together: the times of one machine in one state, measured anew where all else was kept.
    speeds = [
        compare_speed(settings.model, str(settings.out / method), settings.dtype, settings.device)
        for method in settings.methods
    ]
    return report(settings, rows, speeds)


class Kept:
    """What is found of each method, in a file: an experiment that was interrupted goes on with the next method."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.out / "methods.json"
        about = settings.model_dump(mode="json", exclude={"data", "out", "title", "methods"})
        self._about = about | {"model": find_base(settings.model).identity}
        self._rows: dict[str, Row] = {}
        if self._path.exists():
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if found["about"] == self._about:
                self._rows = found["rows"]

    def get(self, method: str, make: Callable[[], Row]) -> Row:
        if method not in self._rows:
            self._rows[method] = make()
            text = json.dumps({"about": self._about, "rows": self._rows}, ensure_ascii=False)
            self._path.write_text(text, encoding="utf-8")
        return self._rows[method]


def measure(settings: Settings, method: Any, tuner: Tuner) -> Row:
    """A method tuned, exported and judged."""
    tuned = None
    flags = ["--method", "ksd", "--region", "hypercube", "--target-block-rate", str(settings.target)]
    flags += ["--prompt-template", settings.prompt_template]
    if method != "ksd":
        tuned = tuner.tune(method)
        flags = ["--method", "sp" if method == "sp" else "na", "--beta", str(tuned["beta"])]
        flags += [] if method == "sp" else ["--score", SCORES[method]]
        flags += ["--compat", "official"] if method == "official" else []
    out = settings.out / method
    exported = export(settings, [*flags, "--force", "--overwrite"], out)
    name = KSD if method == "ksd" else NAMES[method]
    tasks = judge(settings, method)["tasks"]
    return {"method": name, "exported": exported, "tuned": tuned, "tasks": tasks}


class Tuner:
    """Finds the least share of neurons at which as many held-out answers are lost as asked."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _held_out(self) -> tuple[Neurons, Texts, Losses]:
        settings = self._settings
        loaded = load(find_base(settings.model), settings.dtype, settings.device)
        neurons = Neurons(settings, loaded)
        queries = list(neurons.texts.forget["choose"])[: settings.tuned_on]
        texts = Texts(queries, answer_starts(loaded.tokenizer, queries))
        return neurons, texts, losses(neurons.prober, texts, "base: held-out forget texts")

    def lost(self, method: Method, beta: float) -> float:
        """Share of the held-out answers that are lost."""
        neurons, texts, before = self._held_out
        with neurons.changed(method, SCORES[method], beta) as (prober, _):
            after = losses(prober, texts, f"{NAMES[method]}, {beta:g} %")
        return dropped(before.answers, after.answers).rate

    def tune(self, method: Method) -> Row:
        """The least beta tried that reaches the target; where none does, the one that loses most."""
        target = self._settings.target
        trials: dict[float, float] = {}
        for beta in sorted(self._settings.betas):
            trials[beta] = self.lost(method, beta)
            if trials[beta] >= target:
                break
        enough = [beta for beta, share in trials.items() if share >= target]
        for _ in range(BISECTIONS if enough and len(trials) > 1 else 0):
            below = max(beta for beta in trials if beta < min(enough))
            middle = round(math.sqrt(below * min(enough)), 4)
            trials[middle] = self.lost(method, middle)
            enough += [middle] if trials[middle] >= target else []
        best = min(enough) if enough else max(trials, key=lambda beta: trials[beta])
        found = [{"beta": beta, "lost": share} for beta, share in sorted(trials.items())]
        return {"beta": best, "reached": bool(enough), "trials": found}


def export(settings: Settings, flags: list[str], out: Any) -> dict[str, Any]:
    """Write a checkpoint by the command. Raises RunFailed where that fails."""
    command = [sys.executable, "-m", "exporter", "export", settings.model, str(out), *settings.flags(), *flags]
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RunFailed(f"unskill export {' '.join(flags)} ended with exit {done.returncode}")
    skill: dict[str, Any] = json.loads(done.stdout)["skills"][0]
    if skill["key_space"]:
        found = skill["key_space"]
        return {"what": f"layer {found['layer']}, alpha {found['alpha']['value']:.2f}", "works": skill["works"]}
    found = skill["neurons"]
    return {"what": f"{found['beta']:g} %, {found['neurons']} neurons by {found['score']}", "works": skill["works"]}


def judge(settings: Settings, method: str) -> dict[str, Any]:
    """The checkpoint beside its base on all test sources, by `unskill evaluate`."""
    sources = [settings.place(spec) for spec in (settings.forget_test, *settings.others.values())]
    asked = {"forget": (sources[0],), "retain": tuple(sources[1:]), "text": tuple(sources)}
    if settings.choice is not None:
        asked["choice"] = (settings.place(settings.choice),)
    out = settings.out / f"{method}-evaluation"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    # The base is the same for all methods: what one evaluation has found of it, the next one goes on with.
    for done in sorted(settings.out.glob("*-evaluation/*.base.jsonl")):
        shutil.copy(done, out)
    return evaluate(
        EvaluateSettings(
            str(settings.out / method),
            out,
            asked,
            base=settings.model,
            shots=settings.place(settings.shots) if settings.choice and settings.shots else None,
            limit=settings.limit,
            prompt_template=settings.prompt_template,
            seed=settings.seed,
            dtype=settings.dtype,
            device=settings.device,
            batch_size=settings.batch_size,
        ),
        lambda text: None,
    )


def report(settings: Settings, rows: list[Row], speeds: list[Speed]) -> Results:
    names = ["forget", *settings.others]
    lines = []
    for row in rows:
        line = {"method": row["method"], "what": row["exported"]["what"]}
        for name, refused, text in zip(names, tasks_of(row, "forget", "retain"), tasks_of(row, "text"), strict=True):
            line[f"{name}: refused"] = counted(as_rate(refused["edited"]["refused"]["all"]))
            difference = text["difference"]
            if difference["texts"]:
                line[f"{name}: lost"] = counted(as_rate(difference["dropped"]))
                line[f"{name}: perplexity"] = f"x{difference['ratio']:.3f}"
        for task in tasks_of(row, "choice"):
            correct, difference = task["edited"]["correct"], task["difference"]
            line["MMLU: right"] = f"{counted(as_rate(correct))}, refused {task['edited']['refused']['hits']}"
            line["MMLU: base"] = f"{task['base']['correct']['hits']}/{task['base']['correct']['total']}"
            line["flips"] = f"-{difference['only_first']} +{difference['only_second']}, p {difference['p_value']:.2g}"
        lines.append(line)
    note = (
        f"Tuned on training prompts to forget {settings.target:.0%} of them: refused, or the mean token loss of the "
        f"reference answer up by {DROP} nats or more (lost). At most {settings.limit} test items a source, seed "
        f"{settings.seed}, {settings.dtype}. In brackets: 95 % intervals; p: exact McNemar test against the base."
    )
    missed = [row["method"] for row in rows if row["tuned"] is not None and not row["tuned"]["reached"]]
    if missed:
        note += f" Not reached at any tried share of neurons: {', '.join(missed)}; the share that loses most is shown."
    timings = [{"method": row["method"]} | speed.cells() for row, speed in zip(rows, speeds, strict=True)]
    tables = [Table(f"{settings.title}: methods at the same forgetting", turned(lines), note)]
    speed = Table(f"{settings.title}: tokens per second against the base", timings, Speed.note())
    return Results(settings, {"methods": rows}, tables, [chart(settings, rows, note)], timings=speed)


def chart(settings: Settings, rows: list[Row], note: str) -> Figure:
    """What each method took: prompts refused, answers lost, choices that were right before."""
    cells: list[Row] = []
    for row in rows:
        names = dict(zip(("forget", *settings.others), tasks_of(row, "forget", "retain"), strict=True))
        found = {f"{name}: refused": task["edited"]["refused"]["all"] for name, task in names.items()}
        for name, task in zip(names, tasks_of(row, "text"), strict=True):
            found[f"{name}: lost"] = task["difference"].get("dropped")
        for task in tasks_of(row, "choice"):
            right, gone = task["base"]["correct"]["hits"], task["difference"]["only_first"]
            found["MMLU: no longer right"] = {"hits": gone, "total": right}
        for name, each in found.items():
            if each and each["total"]:
                counts = {"hits": each["hits"], "total": each["total"], "share": each["hits"] / each["total"]}
                cells.append({"prompts": name, "by": row["method"]} | counts)
    return Figure("methods", "methods", f"{settings.title}: what each method takes", note, cells)


def tasks_of(row: Row, *kinds: str) -> list[Any]:
    """What `unskill evaluate` found of a method, of these kinds of task."""
    return [task for task in row["tasks"] if task["task"] in kinds]


def turned(lines: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows as columns, of which there are fewer."""
    names = list(dict.fromkeys(name for line in lines for name in line if name != "method"))
    return [{"": name} | {line["method"]: line.get(name, "-") for line in lines} for name in names]


def as_rate(found: Mapping[str, Any]) -> Rate:
    return Rate(found["hits"], found["total"], found["low"], found["high"])
