"""Interventions fitted anew on a quantized graph: the activations that they read are measured on the file that ships.

SmolLM2, GSM8K, layer 20: under int4 weights the keys of forget prompts lie 18 to 27 deviations from the centre of the
hypercube that was fitted in float32, where its alpha is about 3, and overlap with those of retain prompts; a
hypercube fitted on the quantized graph separates them as before.

All is computed as at the export: parts, formats, seed, layer and neurons are the same, and
`exporter.methods.key_space` fits, calibrates and reports. Only the model differs, and runs in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom_modeling.buffers import NA_PARAMS, in_mlp, layer_of
from exporter.common.progress import Progress
from exporter.methods.key_space.hypercubes import closed_bounds
from exporter.methods.neurons.choice import TextSet, effect, measure_effects, text_sets
from exporter.methods.neurons.statistics import floored
from exporter.methods.neurons.texts import longest_first
from exporter.methods.neurons.trade_off import TextLosses
from exporter.onnx.check.runners import Array
from exporter.onnx.quantize.again import Exported
from exporter.onnx.quantize.graph_probe import GraphProber
from exporter.onnx.quantize.key_space import asked_of, inside, refit_key_space
from exporter.onnx.surgery import find_places, read_constants
from exporter.onnx.symbolic import constants_of
from exporter.prompts.skills import SkillTexts

Adjusted = Mapping[int, tuple[Tensor, Tensor]]
"""The neurons that a checkpoint adjusts: by layer index (n,) int64 and params (4, n) float32, see `thresholds`."""


def adjusted_neurons(model: Any) -> Adjusted:
    """Copies of those of a loaded checkpoint."""
    mlps = {layer: model.model.layers[layer].mlp for layer in sorted(model.model.unskill_layers["adjusted"])}
    return {layer: (mlp.unskill_na_index.clone(), mlp.unskill_na_params.clone()) for layer, mlp in mlps.items()}


@dataclass(frozen=True)
class Refit:
    """What was fitted.

    constants: new values by initializer of the graph; buffers: what they are made of, by the checkpoint's names;
    skills: the findings for each, as a JSON object; faults: why a skill's regions do not separate it as required;
    refused: forget prompts of the report parts, as token ids and whether their last token is inside a region.
    """

    constants: Mapping[str, Array] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    skills: Sequence[Mapping[str, Any]] = ()
    faults: Sequence[str] = ()
    refused: Sequence[tuple[tuple[int, ...], bool]] = ()


def refit(path: Path, exported: Exported, adjusted: Adjusted, *, answers: bool) -> Refit:
    """Fit the neurons' distributions anew, then regions on the keys that result.

    path: of the graph, which is not changed; answers: whether false blocks are looked for over answers too.

    Raises RunFailed where the graph computes NaN or infinity, or the disk is full.
    """
    plans, places = exported.plans, find_places(path)
    probe = partial(
        GraphProber,
        path,
        pad_id=exported.pad_id,
        eos=exported.eos,
        key_size=exported.key_size,
        progress=Progress(exported.settings.quiet),
    )
    # Nothing is refused while the graph is probed, or answers would end in the regions that were fitted in float32.
    held = read_constants(path, places.regions.values())
    bounding = {*places.bounds.values(), *places.limits.values()}
    shut = {name: closed_bounds(held[name].shape).numpy() for name in bounding}
    sets = text_sets(plans)
    neurons: dict[str, Any] = {}
    constants: dict[str, Array] = {}
    buffers: dict[str, Tensor] = {}
    before: Mapping[TextSet, TextLosses] = {}
    adjusting = next((plan for plan in plans if plan.skill.adjusts), None)
    if adjusting is not None:
        assert adjusting.texts is not None and places.least is not None
        # Under an infinite threshold no neuron is moved.
        still = {name: values + float("inf") for name, values in read_constants(path, [places.least]).items()}
        prober = probe(list(places.values.values()), shut | still)
        params, neurons[adjusting.skill.name] = refit_neurons(prober, adjusting.texts, adjusted, exported.bos_id)
        before = measure_effects(prober, sets, "texts, neurons as they were")
        del prober  # its sessions hold the weights, as those of the next one will
        made = constants_of(params)
        constants[places.least] = made["least"].numpy()
        constants |= {name: made[f"standardisers_{layer}"].numpy() for layer, name in places.standardisers.items()}
        buffers |= {in_mlp(layer, NA_PARAMS): each for layer, each in params.items()}
    prober = probe(list(places.keys.values()), shut | constants)
    if adjusting is not None:
        after = measure_effects(prober, sets, "texts, neurons changed")
        neurons[adjusting.skill.name]["texts"] = {
            f"{skill}: {side}": asdict(effect(losses, after[skill, side], exported.settings.seed))
            for (skill, side), losses in before.items()
        }
    old: dict[int, dict[str, Tensor]] = {layer: {} for layer in places.keys}
    for buffer, name in places.regions.items():
        old[layer_of(buffer)][buffer.rpartition(".")[2]] = torch.from_numpy(held[name].copy())
    new, key_spaces = refit_key_space(prober, old, exported, answers=answers)
    regions = {in_mlp(layer, name): each for layer, found in new.items() for name, each in found.items()}
    constants |= {places.regions[buffer]: each.numpy() for buffer, each in regions.items()}
    buffers |= regions
    report = [query for plan in plans if plan.skill.blocks for query in asked_of(plan)]
    by_place = {list(old).index(layer): found for layer, found in new.items()}
    hits = inside(prober, report, by_place, "forget set: report, fitted anew")
    names = [plan.skill.name for plan in plans]
    return Refit(
        constants,
        buffers,
        [{"name": name, "neurons": neurons.get(name), "key_space": key_spaces.get(name)} for name in names],
        [f"{name}: {found['fault']}" for name, found in key_spaces.items() if found["fault"] is not None],
        [(query.ids, hit) for query, hit in zip(report, hits, strict=True)],
    )


def refit_neurons(
    prober: GraphProber, texts: SkillTexts, adjusted: Adjusted, bos_id: int | None
) -> tuple[dict[int, Tensor], dict[str, Any]]:
    """Mean and deviation of the adjusted neurons on forget and retain texts of the fit parts (section 3 of the paper):
    params by layer, as in `Adjusted`; and what the summary says of them.

    The prober's taps are the pre-activations of the adjusted layers.
    """
    forget, retain = (
        prober.neurons(longest_first(side["fit"]), bos_id, f"{name} texts")
        for name, side in (("forget", texts.forget), ("retain", texts.retain))
    )
    parts = (forget.mean, forget.deviation, retain.mean, retain.deviation)
    at_floor = floored(forget) | floored(retain)
    params, shifts, raised = {}, [], 0
    for place, (layer, (index, (mean, deviation, *_))) in enumerate(adjusted.items()):
        params[layer] = torch.stack([part[place, index] for part in parts]).float()
        shifts.append((params[layer][0] - mean).abs() / deviation)
        raised += int(at_floor[place, index].sum())
    every = torch.cat(shifts)
    return params, {
        "neurons": len(every),
        "tokens": {"forget": forget.count, "retain": retain.count},
        "forget_mean_moved_deviations": {"median": float(every.median()), "most": float(every.max())},
        "at_deviation_floor": raised,
    }
