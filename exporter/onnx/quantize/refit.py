"""Interventions fitted anew on a quantised graph: what quantised weights move is measured on the file that ships.

SmolLM2, GSM8K, layer 20: under int4 weights the keys of forget prompts lie 18 to 27 deviations from the centre of the
hypercube that was fitted in float32, where its alpha is about 3, and overlap with those of retain prompts; a
hypercube fitted on the quantised graph separates them as before.

Nothing is computed here in another way than at the export: parts, formats, seed, layer and neurons are its own, and
`exporter.methods.key_space.evidence` fits, calibrates and reports. Only the model is another, and it runs in ONNX
Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporter.methods.neurons.choice import effect, measure_effects, text_sets
from exporter.methods.neurons.statistics import floored
from exporter.methods.neurons.texts import longest_first
from exporter.methods.neurons.trade_off import TextLosses
from exporter.onnx.check.runners import Array
from exporter.onnx.quantize.graph_probe import GraphProber, probing
from exporter.onnx.quantize.key_refit import refit_key_space
from exporter.onnx.surgery import STANDARDISERS, Places, closed_bounds, find_places, read_constants
from exporter.onnx.symbolic import constants_of
from exporter.prompts.formats import Formatter
from exporter.prompts.skills import SkillPlan, SkillTexts


@dataclass(frozen=True)
class Adjusted:
    """The neurons that a checkpoint adjusts: by layer index (n,) int64 and params (4, n) float32, see `thresholds`."""

    index: Mapping[int, Tensor]
    params: Mapping[int, Tensor]

    @classmethod
    def of(cls, model: Any) -> Adjusted:
        """Those of a loaded checkpoint."""
        mlps = {layer: model.model.layers[layer].mlp for layer in sorted(model.model.unskill_layers["adjusted"])}
        return cls(
            {layer: mlp.unskill_na_index.clone() for layer, mlp in mlps.items()},
            {layer: mlp.unskill_na_params.clone() for layer, mlp in mlps.items()},
        )


@dataclass(frozen=True)
class Refit:
    """What was fitted.

    constants: new values by the names of the graph's initializers; buffers: what they are made of, by the checkpoint's
    names; skills: what was found for each, as a JSON object; faults: why a skill's hypercubes do not tell it from the
    rest as asked; refused: forget prompts of the report parts, token ids and whether their last token is inside a
    hypercube.
    """

    constants: Mapping[str, Array]
    buffers: Mapping[str, Tensor]
    skills: Sequence[Mapping[str, Any]]
    faults: Sequence[str]
    refused: Sequence[tuple[tuple[int, ...], bool]]


def refit(
    path: Path,
    plans: Sequence[SkillPlan],
    formatter: Formatter,
    adjusted: Adjusted,
    known: Mapping[str, Mapping[str, Any]],
    *,
    seed: int,
    refusal: str,
    bos_id: int | None,
    answers: bool,
    probe: Mapping[str, Any],
) -> Refit:
    """Fit the neurons' distributions anew, then hypercubes on the keys that they give.

    path: of the graph, which stays as it is; plans: the export's skills, of which one at most adjusts neurons; known:
    by skill what the export's summary says of its key space; answers: whether false blocks are looked for over answers
    too; probe: settings of `GraphProber`.

    Raises RunFailed where the graph computes NaN or infinity, or the disk is full.
    """
    places = find_places(path)
    # While it is probed nothing is refused, or answers would end where the hypercubes of float32 happen to hold them.
    shut = {name: closed_bounds(bounds.shape) for name, bounds in read_constants(path, places.bounds.values()).items()}
    sets = text_sets(plans)
    neurons: dict[str, Any] = {}
    constants: dict[str, Array] = {}
    buffers: dict[str, Tensor] = {}
    before: Mapping[str, TextLosses] = {}
    adjusting = next((plan for plan in plans if plan.skill.adjusts), None)
    if adjusting is not None:
        assert adjusting.texts is not None and places.least is not None
        # Under an infinite threshold no neuron is moved.
        still = {name: values + float("inf") for name, values in read_constants(path, [places.least]).items()}
        with probing(path, list(places.values.values()), shut | still, **probe) as prober:
            moved, found = refit_neurons(prober, adjusting.texts, adjusted, bos_id)
            before = measure_effects(prober, sets, "texts, neurons as they were")
        neurons[adjusting.skill.name] = found
        constants = neuron_constants(places, moved)
        buffers = {f"layers.{layer}.mlp.unskill_na_params": each for layer, each in moved.items()}
    with probing(path, list(places.keys.values()), shut | constants, **probe) as prober:
        if adjusting is not None:
            after = measure_effects(prober, sets, "texts, neurons changed")
            neurons[adjusting.skill.name]["texts"] = {
                name: asdict(effect(losses, after[name], seed)) for name, losses in before.items()
            }
        old = {
            layer: torch.from_numpy(read_constants(path, [name])[name].copy()) for layer, name in places.bounds.items()
        }
        keys = refit_key_space(prober, old, plans, formatter, known, refusal, answers)
    constants |= {places.bounds[layer]: bounds.numpy() for layer, bounds in keys.bounds.items()}
    buffers |= {f"layers.{layer}.mlp.unskill_ksd_bounds": bounds for layer, bounds in keys.bounds.items()}
    skills = [
        {
            "name": plan.skill.name,
            "neurons": neurons.get(plan.skill.name),
            "key_space": keys.skills.get(plan.skill.name),
        }
        for plan in plans
    ]
    return Refit(constants, buffers, skills, keys.faults, keys.refused)


def refit_neurons(
    prober: GraphProber, texts: SkillTexts, adjusted: Adjusted, bos_id: int | None
) -> tuple[dict[int, Tensor], dict[str, Any]]:
    """Mean and deviation of the adjusted neurons on forget and retain texts of the fit parts (section 3 of the paper):
    (4, n) float32 by layer, in the form of `Adjusted.params`; and what is to be told of them.

    The prober's taps are the pre-activations of the adjusted layers.
    """
    forget, retain = (
        prober.neurons(longest_first(side["fit"]), bos_id, f"{name} texts")
        for name, side in (("forget", texts.forget), ("retain", texts.retain))
    )
    parts = (forget.mean, forget.deviation, retain.mean, retain.deviation)
    hardly = floored(forget) | floored(retain)
    moved, shifts, raised = {}, [], 0
    for place, (layer, index) in enumerate(adjusted.index.items()):
        moved[layer] = torch.stack([part[place, index] for part in parts]).float()
        mu, sd = adjusted.params[layer][0], adjusted.params[layer][1]
        shifts.append((moved[layer][0] - mu).abs() / sd)
        raised += int(hardly[place, index].sum())
    every = torch.cat(shifts)
    return moved, {
        "neurons": len(every),
        "tokens": {"forget": forget.count, "retain": retain.count},
        "forget_mean_moved_deviations": {"median": float(every.median()), "most": float(every.max())},
        "at_deviation_floor": raised,
    }


def neuron_constants(places: Places, params: Mapping[int, Tensor]) -> dict[str, Array]:
    """The graph's constants of these distributions, by the names that they have there."""
    assert places.least is not None
    made = constants_of(params)
    found = {places.least: made["least"].numpy()}
    for name in places.standardisers.values():
        match = STANDARDISERS.search(name)
        assert match is not None
        found[name] = made[f"standardisers_{match[1]}"].numpy()
    return found
