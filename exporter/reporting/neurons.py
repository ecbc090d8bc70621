"""Neuron Adjust and Selective Pruning in figures: the trade-off over beta, and where the neurons are."""

from __future__ import annotations

import math

from exporter.checkpoint.card.figure import Figure, Row, figure_id
from exporter.checkpoint.reading import StoredSkill
from exporter.checkpoint.summary import NeuronSummary
from exporter.methods.neurons.choice import CHOOSE_FORGET, CHOOSE_RETAIN


def trade_off_figures(skill: StoredSkill, number: int) -> list[Figure]:
    """What was tried: forgetting and its cost over beta."""
    found = skill.summary.neurons
    assert found is not None
    forget, upper = (
        [
            {"series": trial.score, **trial.model_dump(exclude={"score"}), "ratio": math.exp(getattr(trial, rise))}
            for trial in found.trials
        ]
        for rise in ("forget_rise", "upper")
    )
    taken = {"value": found.beta, "label": f"{found.beta:g} %, taken"}
    limit = {"value": math.exp(found.max_retain_loss), "label": "limit", "across": True}
    texts = {side: len(skill.prompts[f"texts.{side}.choose"]) for side in ("forget", "retain", "everyday")}
    of = (
        f"Choose part: {min(texts['forget'], CHOOSE_FORGET)} forget, {min(texts['retain'], CHOOSE_RETAIN)} retain and "
        f"{min(texts['everyday'], CHOOSE_RETAIN)} everyday texts, by which score and beta were chosen; one mark for "
        "each trial. Beta is the share of the model's neurons that are changed; taken were "
        f"{found.beta:g} % by {found.score}."
    )
    return [
        Figure(
            figure_id(number, "forget-texts"),
            "trade_off",
            "Neurons: what forget texts lose over beta",
            f"Perplexity of forget texts against the base model, higher is more forgotten. {of}",
            forget,
            [taken],
        ),
        Figure(
            figure_id(number, "retain-texts"),
            "trade_off",
            "Neurons: what other texts lose over beta",
            "Perplexity of retain or everyday texts against the base model, whichever lose more: upper end of the "
            f"90 % interval over texts. The limit is --max-retain-loss, {found.max_retain_loss:g} nats per token. "
            f"{of}",
            upper,
            [taken, limit],
        ),
    ]


def place_figure(skill: StoredSkill, found: NeuronSummary, number: int) -> Figure:
    """In which layers the neurons are."""
    layers, width = skill.tensors["na.forget.mean"].shape
    counts = [found.layers.get(str(layer), 0) for layer in range(layers)]
    rows: list[Row] = [
        {"layer": layer, "neurons": count, "share": count / width} for layer, count in enumerate(counts)
    ]
    what = "zeroed" if skill.summary.method == "sp" else "adjusted"
    caption = (
        f"{found.neurons} of {layers * width} neurons are {what}: the top {found.beta:g} % by {found.score}. "
        f"Each layer has {width}."
    )
    return Figure(figure_id(number, "neurons"), "neurons", f"Where the {what} neurons are", caption, rows)


def effect_rows(found: NeuronSummary) -> list[Row]:
    """Perplexity of the report part's texts before and after, all skills' neurons changed."""
    return [
        {
            "texts": name,
            "of": each.texts,
            "tokens": each.tokens,
            "base": math.exp(each.base_loss),
            "changed": math.exp(each.base_loss + each.rise),
            "ratio": each.perplexity_ratio,
            "upper": math.exp(each.upper),
        }
        for name, each in found.texts.items()
    ]
