"""Interventions fitted anew on a quantized graph: what quantized weights move is measured on the file that ships.

SmolLM2, GSM8K, layer 20: under int4 weights the keys of forget prompts lie 18 to 27 deviations from the centre of the
hypercube that was fitted in float32, where its alpha is about 3, and overlap with those of retain prompts; a
hypercube fitted on the quantized graph separates them as before.

Nothing is computed here in another way than at the export: parts, formats, seed, layer and neurons are its own, and
`exporter.methods.key_space.evidence` fits, calibrates and reports. Only the model is another, and it runs in ONNX
Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom_modeling.buffers import KSD_BOUNDS, NA_PARAMS, in_mlp
from custom_modeling.key_space import inside_hypercubes
from exporter.checkpoint.summary import KeySpaceSummary
from exporter.common.rates import Rate, rate, rates
from exporter.methods.key_space.evidence import (
    ANSWER_TOKENS,
    Decision,
    Evidence,
    decide,
    gather,
    measure_limits,
    rate_within,
)
from exporter.methods.key_space.hypercubes import closed_bounds
from exporter.methods.neurons.choice import TextSet, effect, measure_effects, text_sets
from exporter.methods.neurons.statistics import floored
from exporter.methods.neurons.texts import longest_first
from exporter.methods.neurons.trade_off import TextLosses
from exporter.onnx.check.runners import Array
from exporter.onnx.quantize.graph_probe import GraphProber, Running
from exporter.onnx.surgery import STANDARDISERS, Places, find_places, read_constants
from exporter.onnx.symbolic import constants_of
from exporter.prompts.formats import Formatter, Query
from exporter.prompts.skills import SkillPlan, SkillTexts
from exporter.recipes.settings import ExportSettings


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


@dataclass(frozen=True)
class Exported:
    """What the checkpoint was exported with. `plans`: of its skills, of which one at most adjusts neurons; `known`: by
    skill what the export's summary says of its key space."""

    settings: ExportSettings
    formatter: Formatter
    plans: Sequence[SkillPlan]
    known: Mapping[str, KeySpaceSummary]
    bos_id: int | None


def refit(path: Path, exported: Exported, adjusted: Adjusted, running: Running, *, answers: bool) -> Refit:
    """Fit the neurons' distributions anew, then hypercubes on the keys that they give.

    path: of the graph, which stays as it is; answers: whether false blocks are looked for over answers too.

    Raises RunFailed where the graph computes NaN or infinity, or the disk is full.
    """
    plans = exported.plans
    places = find_places(path)
    # While it is probed nothing is refused, or answers would end where the hypercubes of float32 happen to hold them.
    held = read_constants(path, places.bounds.values())
    shut = {name: closed_bounds(bounds.shape).numpy() for name, bounds in held.items()}
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
        prober = GraphProber(path, list(places.values.values()), shut | still, running)
        moved, found = refit_neurons(prober, adjusting.texts, adjusted, exported.bos_id)
        before = measure_effects(prober, sets, "texts, neurons as they were")
        del prober  # its sessions hold the weights, as those of the next one will
        neurons[adjusting.skill.name] = found
        constants = neuron_constants(places, moved)
        buffers = {in_mlp(layer, NA_PARAMS): each for layer, each in moved.items()}
    prober = GraphProber(path, list(places.keys.values()), shut | constants, running)
    if adjusting is not None:
        after = measure_effects(prober, sets, "texts, neurons changed")
        neurons[adjusting.skill.name]["texts"] = {
            f"{skill}: {side}": asdict(effect(losses, after[skill, side], exported.settings.seed))
            for (skill, side), losses in before.items()
        }
    old = {layer: torch.from_numpy(held[name].copy()) for layer, name in places.bounds.items()}
    keys = refit_key_space(prober, old, exported, answers=answers)
    constants |= {places.bounds[layer]: bounds.numpy() for layer, bounds in keys.bounds.items()}
    buffers |= {in_mlp(layer, KSD_BOUNDS): bounds for layer, bounds in keys.bounds.items()}
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


@dataclass(frozen=True)
class KeyRefit:
    """bounds: by layer (c, 2, d_ff) float32 of all skills' hypercubes there; skills: what was found, by name; faults,
    refused: see `exporter.onnx.quantize.refit.Refit`."""

    bounds: dict[int, Tensor] = field(default_factory=dict)
    skills: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    refused: list[tuple[tuple[int, ...], bool]] = field(default_factory=list)


def refit_key_space(prober: GraphProber, old: Mapping[int, Tensor], exported: Exported, *, answers: bool) -> KeyRefit:
    """Fit, calibrate and report every skill's hypercubes, at the layer that the export chose.

    prober: its taps are the keys of the layers of `old`, in their order, and its hypercubes hold nothing; old: the
    bounds that were fitted in float32, by layer.
    """
    formatter, known = exported.formatter, exported.known
    blocking = [plan for plan in exported.plans if plan.skill.blocks]
    if not blocking:
        return KeyRefit()
    layers = list(old)
    parts = [(plan.forget, plan.retain) for plan in blocking]
    evidence = gather(prober, formatter, parts, ANSWER_TOKENS if answers else 0)
    cubes: dict[int, list[Tensor]] = {}
    found = KeyRefit()
    for plan, own in zip(blocking, evidence, strict=True):
        layer = known[plan.skill.name].layer
        place = layers.index(layer)
        # The layer is its place among the tapped ones, whose keys are all that there is.
        decision = decide(own, replace(plan.skill, layer=place), kinds_known=True)
        cubes.setdefault(layer, []).append(own.keys.bounds(place, decision.alpha.value))
        fault = None if decision.separates else fault_of(own, decision, plan, layer)
        if fault is not None:
            found.faults.append(f"{plan.skill.name}: {fault}")
        before = inside(prober, plan.forget.report, {place: old[layer]}, "forget set: report, not fitted anew")
        limits = measure_limits(prober, formatter, own, decision, exported.settings.refusal)
        found.skills[plan.skill.name] = {
            "layer": layer,
            "hypercubes": list(own.keys.formats),
            "alpha_before": known[plan.skill.name].alpha.model_dump(),
            "separates": decision.separates,
            "fault": fault,
            **figures(decision, plan, rate(sum(before), len(before)), limits, answers),
        }
    found.bounds.update({layer: torch.cat(bounds) for layer, bounds in cubes.items()})
    report = [query for plan in blocking for query in plan.forget.report]
    places = {layers.index(layer): bounds for layer, bounds in found.bounds.items()}
    hits = inside(prober, report, places, "forget set: report, fitted anew")
    found.refused.extend((query.ids, hit) for query, hit in zip(report, hits, strict=True))
    return found


def inside(prober: GraphProber, queries: Sequence[Query], bounds: Mapping[int, Tensor], what: str) -> list[bool]:
    """Whether each query's last token is inside a hypercube; bounds by the place of their layer among the taps."""
    held = torch.zeros(len(queries), dtype=torch.bool)
    for rows, keys in prober.last_token_keys(queries, what):
        for place, cubes in bounds.items():
            held[rows] |= inside_hypercubes(keys[:, place], cubes)
    return [bool(hit) for hit in held]


def fault_of(evidence: Evidence, decision: Decision, plan: SkillPlan, layer: int) -> str:
    """Why the hypercubes do not separate: too many harmless prompts of the choose part inside."""
    choice = decision.table[decision.layer].choice
    hits, total, alpha = choice.false_blocks, choice.harmless, choice.alpha
    if not choice.false_block_rate > plan.skill.max_false_block:
        alpha = decision.alpha.value
        held = rate_within(evidence.retain_choose.answer[:, decision.layer], alpha)
        hits, total = held.hits, held.total
    return (
        f"on the quantized graph the hypercubes of layer {layer}, at alpha {alpha:.1f}, refuse {hits} of {total} "
        f"harmless prompts (--max-false-block {plan.skill.max_false_block})"
    )


def figures(
    decision: Decision, plan: SkillPlan, before: Rate, limits: Mapping[str, Rate], answers: bool
) -> dict[str, Any]:
    """What was measured, on the report parts; `false_blocks_over_answers` is null where no answers were written."""
    return {
        "alpha": asdict(decision.alpha),
        "max_false_block": plan.skill.max_false_block,
        "target_block_rate": plan.skill.target_block_rate,
        "blocked_without_refitting": before.as_json(),
        "blocked": rates(decision.blocked),
        "blocked_in_unseen_formats": rates(decision.blocked_unseen),
        "false_blocks": rates(decision.false_blocks),
        "false_blocks_over_answers": rates(decision.false_answers) if answers else None,
        "limits": rates(limits),
    }
