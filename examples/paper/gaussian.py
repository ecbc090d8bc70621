"""Are pre-activations Gaussian, as Neuron Adjust takes them to be? (Section 3.) For several pairs of skills.

A skill shows in what a model writes, so texts are prompts with answers: those of a source, or, for packaged prompts,
the base model's own greedy ones. Gaussians are fitted on one part of the texts, as Neuron Adjust fits them, and judged
on the other, at the tokens that it may move: all but position 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from torch import Tensor

from examples.paper.answers import answers
from examples.paper.distributions import BINS, Floats, decisions, expected_agreement, shape
from examples.paper.experiment import Experiment, Results, Table
from exporter.checkpoint.card.figure import Figure, Row
from exporter.common.errors import BadInput
from exporter.common.progress import Progress
from exporter.evaluation.items import sample
from exporter.methods.moments import Gaussian
from exporter.methods.neurons.scores import effect_size
from exporter.methods.neurons.statistics import floored
from exporter.methods.neurons.texts import counted_tokens, longest_first, probe_texts
from exporter.models.files import find_base
from exporter.models.hooks import pre_activation_hooks
from exporter.models.loading import LoadedModel, load
from exporter.models.prober import Prober
from exporter.models.tokens import context_of
from exporter.prompts.formats import PLAIN, Formatter, Query
from exporter.prompts.packaged import everyday_prompts
from exporter.prompts.sources import Prompt
from exporter.prompts.texts import as_texts


class Settings(Experiment):
    """pairs: names of two sides each; sides: by their names sources of whole texts; answered: by their names kinds of
    the packaged prompts, each of which the model itself answers in at most `answer_tokens`.

    fit, test: texts of each part; a side with fewer is divided alike. neurons: of each layer, drawn by the seed.
    """

    pairs: tuple[tuple[str, str], ...] = pydantic.Field(min_length=1)
    sides: dict[str, str] = {}
    answered: dict[str, tuple[str, ...]] = {}
    answer_tokens: pydantic.PositiveInt = 96
    fit: pydantic.PositiveInt = 60
    test: pydantic.PositiveInt = 40
    neurons: pydantic.PositiveInt = 64


Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Side:
    """Pre-activations (tokens, neurons) float32 of the sampled neurons by layer, over both parts; texts: of each.

    gaussian: of all neurons, as Neuron Adjust fits it.
    """

    gaussian: Gaussian
    texts: tuple[int, int]
    fit: Sequence[Values]
    test: Sequence[Values]


def run(settings: Settings) -> Results:
    check(settings)
    loaded = load(find_base(settings.model), settings.dtype, settings.device)
    prober = Prober(loaded, settings.batch_size, progress=Progress(quiet=False))
    core: Any = loaded.model.base_model
    width = core.layers[0].mlp.gate_proj.out_features
    draw = torch.Generator().manual_seed(settings.seed)
    places = [torch.randperm(width, generator=draw)[: settings.neurons].sort().values for _ in range(prober.layers)]
    sides = {}
    for name in dict.fromkeys(chain.from_iterable(settings.pairs)):
        fit, test = divide(settings, name, texts(settings, loaded, name))
        gaussian = probe_texts(prober, longest_first(fit), f"{name}: fit").freeze().gaussian
        values = [pre_activations(prober, part, places, f"{name}: values") for part in (fit, test)]
        sides[name] = Side(gaussian, (len(fit), len(test)), *values)
    found = [
        measured(settings, number, sides[one], sides[other], places)
        for number, (one, other) in enumerate(settings.pairs)
    ]
    return report(settings, sides, found)


def check(settings: Settings) -> None:
    kinds = {str(prompt.kind) for prompt in everyday_prompts()}
    for name in chain.from_iterable(settings.pairs):
        if (name in settings.sides) == (name in settings.answered):
            raise BadInput(f"pairs: '{name}' must be a name of sides or of answered, and of one alone")
    for name, asked in settings.answered.items():
        if unknown := [kind for kind in asked if kind not in kinds]:
            raise BadInput(f"answered.{name}: no kind '{unknown[0]}'; there are {', '.join(sorted(kinds))}")


def texts(settings: Settings, loaded: LoadedModel, name: str) -> list[Query]:
    """At most as many whole texts of a side as both parts take."""
    count, context = settings.fit + settings.test, context_of(loaded.model)
    if name in settings.sides:
        prompts = sample(settings.prompts(settings.sides[name], f"sides.{name}"), count, settings.seed)
        return as_texts(loaded.tokenizer, prompts, f"sides.{name}", context)
    kinds = settings.answered[name]
    prompts = sample([each for each in everyday_prompts() if each.kind in kinds], count, settings.seed)
    return as_texts(loaded.tokenizer, answered(settings, loaded, prompts), f"answered.{name}", context)


def answered(settings: Settings, loaded: LoadedModel, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with the model's own answers."""
    formatter = Formatter(loaded.tokenizer, formats=PLAIN)
    asked = [formatter.render(prompt.text) for prompt in prompts]
    said = answers(loaded, asked, settings.answer_tokens, settings.batch_size)
    decoded = [str(loaded.tokenizer.decode(each, skip_special_tokens=True)) for each in said]
    return [replace(prompt, answer=answer) for prompt, answer in zip(prompts, decoded, strict=True)]


def divide(settings: Settings, name: str, queries: Sequence[Query]) -> tuple[list[Query], list[Query]]:
    """The parts fit and test, in the order of the prompts' digests, which says nothing about them."""
    ordered = sorted(queries, key=lambda query: query.prompt.sha256)
    fit = round(len(ordered) * settings.fit / (settings.fit + settings.test))
    if min(fit, len(ordered) - fit) < 2:
        raise BadInput(f"pairs: {len(ordered)} texts of '{name}' are too few: fit and test need two or more each")
    return ordered[:fit], ordered[fit:]


def pre_activations(prober: Prober, queries: Sequence[Query], places: Sequence[Tensor], what: str) -> list[Values]:
    """Values (tokens, neurons) of the neurons `places` of each layer, at the tokens that Neuron Adjust may move."""

    def run(rows: list[int]) -> list[Tensor]:
        inputs = prober.pad([queries[row] for row in rows])
        begun = inputs["attention_mask"].cumsum(-1) > 1  # not position 0
        mask = counted_tokens(inputs, prober.loaded.tokenizer.bos_token_id).bool() & begun
        seen: list[Tensor] = []
        taps = pre_activation_hooks(
            prober.loaded.model,
            lambda layer, values: seen.append(values[mask][:, places[layer].to(values.device)].float().cpu()),
        )
        with taps:
            prober.forward([queries[row] for row in rows])
        return seen

    batches = list(prober.batches(queries, run, what, unit="text"))
    return [torch.cat(layer).numpy() for layer in zip(*batches, strict=True)]


def measured(
    settings: Settings, number: int, forget: Side, retain: Side, places: Sequence[Tensor]
) -> dict[str, list[Floats]]:
    """Of a pair, by what is measured, of each layer the figures of its neurons.

    What is of one side alone has its name before it: "forget distance".
    """
    effect = effect_size(forget.gaussian, retain.gaussian)
    still = floored(forget.gaussian) | floored(retain.gaussian)
    found: dict[str, list[Floats]] = {}
    for layer, index in enumerate(places):
        # Neuron Adjust takes none that hardly varies.
        kept = ~still[layer, index]
        index, chosen = index[kept], kept.numpy()
        parts = []
        params = []
        for label, side in (("forget", forget), ("retain", retain)):
            fit, test = (part[layer][:, chosen].astype(np.float64) for part in (side.fit, side.test))
            mean, deviation = side.gaussian.mean[layer, index], side.gaussian.deviation[layer, index]
            for name, each in shape(fit, test, mean.numpy(), deviation.numpy()).items():
                found.setdefault(f"{label} {name}", []).append(each)
            parts.append((fit, test))
            params += [mean, deviation]
        fits, tests = (parts[0][0], parts[1][0]), (parts[0][1], parts[1][1])
        more = decisions(fits, tests, torch.stack(params))
        more["agree_expected"] = expected_agreement(fits, tests, torch.stack(params), settings.seed + number)
        for name, each in {**more, "effect": effect[layer, index].numpy()}.items():
            found.setdefault(name, []).append(each)
    return found


def groups(found: Mapping[str, Sequence[Floats]]) -> dict[str, list[Any]]:
    """Which neurons are looked at together: by group, of each layer flags (neurons,)."""
    effects = found["effect"]
    layers = len(effects)
    chosen: dict[str, list[Any]] = {}
    for name, part in zip(
        ("first third", "middle third", "last third"), np.array_split(range(layers), 3), strict=True
    ):
        if len(part):
            flags = [np.full(len(each), layer in part) for layer, each in enumerate(effects)]
            chosen[f"{name} ({part[0]}-{part[-1]})"] = flags
    chosen["all"] = [np.full(len(each), True) for each in effects]
    least = np.quantile(np.concatenate(effects), 0.9)
    chosen["all, the tenth that parts the texts most"] = [each >= least for each in effects]
    return chosen


def median(values: Sequence[Floats], flags: Sequence[Any]) -> float:
    """Over the neurons of all layers that the flags name."""
    return float(np.median(np.concatenate([each[chosen] for each, chosen in zip(values, flags, strict=True)])))


SHAPES = {
    "distance": "distance to the Gaussian",
    "distance_refitted": "fitted without position 0",
    "distance_to_fit": "to the fit texts themselves",
    "skewness": "|skewness|",
    "kurtosis": "excess kurtosis",
}
DECISIONS = {
    "agree": "same side",
    "agree_expected": "same side, were they Gaussian",
    "right_gaussian": "right side, Gaussians",
    "right_histogram": "right side, histograms",
}


def report(settings: Settings, sides: Mapping[str, Side], found: Sequence[Mapping[str, Sequence[Floats]]]) -> Results:
    tables, figures, numbers, decided = [], [], [], []
    for number, (pair, each) in enumerate(zip(settings.pairs, found, strict=True)):
        labels = dict(zip(("forget", "retain"), pair, strict=True))
        whole: dict[str, Any] = {"pair": list(pair), "groups": {}}
        lines = []
        for group, flags in groups(each).items():
            values = {name: median(rows, flags) for name, rows in each.items()}
            whole["groups"][group] = {"neurons": int(sum(chosen.sum() for chosen in flags)), **values}
            for label, name in labels.items():
                shapes = {title: f"{values[f'{label} {key}']:.3f}" for key, title in SHAPES.items()}
                neurons = str(whole["groups"][group]["neurons"])
                lines.append({"layers": group, "neurons": neurons, "texts": name} | shapes)
            shares = {title: f"{values[key]:.1%}" for key, title in DECISIONS.items()}
            decided.append({"pair": " / ".join(pair), "layers": group} | shares)
        counts = "; ".join(f"{name}: {counted_texts(sides[name])}" for name in pair)
        note = (
            f"Medians over neurons, at most {settings.neurons} of each layer, seed {settings.seed}, {settings.dtype}. "
            f"Kolmogorov-Smirnov distance of the test texts' pre-activations at all tokens but the first. {counts}. "
            "The fit texts themselves: what a density without any assumption would leave."
        )
        title = f"{settings.title}: are pre-activations Gaussian? {' / '.join(pair)}"
        tables.append(Table(title, lines, note))
        figures.append(figure(number, title, note, labels, each))
        numbers.append(whole)
    note = (
        "Median over neurons of the share of test tokens of which Gaussians and histograms "
        f"({BINS} places) of the fit texts say the same, whether they look more like forget or like retain texts "
        "(same side); that are put on the side they come from (right side, chance is 50 %). Were they Gaussian: of as "
        "many values drawn from the Gaussians. Of a pair the first is the forget side; both sides count the same."
    )
    tables.append(Table(f"{settings.title}: what the assumption decides", decided, note))
    return Results(settings, {"pairs": numbers}, tables, figures)


def counted_texts(side: Side) -> str:
    fit, test = side.texts
    return f"{fit} texts fitted ({side.gaussian.count} tokens), {test} tested ({len(side.test[0])} tokens)"


def figure(
    number: int, title: str, caption: str, labels: Mapping[str, str], found: Mapping[str, Sequence[Floats]]
) -> Figure:
    rows: list[Row] = []
    for key, what in (("distance", "to the Gaussian"), ("distance_to_fit", "to the fit texts")):
        for label, name in labels.items():
            for layer, each in enumerate(found[f"{label} {key}"]):
                if len(each):
                    middle, high = np.quantile(each, [0.5, 0.9]).tolist()
                    about = {"series": f"{name}, {what}", "layer": layer, "neurons": len(each)}
                    rows.append(about | {"distance": middle, "high": high})
    return Figure(f"gaussian-{number}", "neuron_gaussian", title, caption, rows)
