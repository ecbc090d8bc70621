"""Interventions fitted anew on a quantized graph: the activations that they read are measured on the file that ships.

SmolLM2, GSM8K, layer 20: under int4 weights the keys of forget prompts lie 18 to 27 deviations from the centre of the
hypercube that was fitted in float32, where its alpha is about 3, and overlap with those of retain prompts; a
hypercube fitted on the quantized graph separates them as before.

All is computed as at the export: parts, formats, seed, layer and neurons are the same, and
`exporter.methods.key_space.evidence` fits, calibrates and reports. Only the model differs, and runs in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom_modeling.buffers import KSD_BOUNDS, NA_PARAMS, in_mlp
from custom_modeling.key_space import inside_hypercubes
from exporter.checkpoint.summary import KeySpaceSummary
from exporter.common.rates import rate, rates
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
from exporter.onnx.quantize.graph_probe import GraphProber
from exporter.onnx.surgery import find_places, read_constants
from exporter.onnx.symbolic import constants_of
from exporter.prompts.formats import Formatter, Query
from exporter.prompts.skills import SkillPlan, SkillTexts
from exporter.recipes.settings import ExportSettings

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
    skills: the findings for each, as a JSON object; faults: why a skill's hypercubes do not separate it as required;
    refused: forget prompts of the report parts, as token ids and whether their last token is inside a hypercube.
    """

    constants: Mapping[str, Array] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    skills: Sequence[Mapping[str, Any]] = ()
    faults: Sequence[str] = ()
    refused: Sequence[tuple[tuple[int, ...], bool]] = ()


@dataclass(frozen=True)
class Exported:
    """What the checkpoint was exported with.

    plans: of its skills, of which at most one adjusts neurons; known: the export's summary of each skill's key space;
    eos: ids that end an answer.
    """

    settings: ExportSettings
    formatter: Formatter
    plans: Sequence[SkillPlan]
    known: Mapping[str, KeySpaceSummary]
    pad_id: int
    bos_id: int | None
    eos: Sequence[int]


def refit(path: Path, exported: Exported, adjusted: Adjusted, *, answers: bool) -> Refit:
    """Fit the neurons' distributions anew, then hypercubes on the keys that result.

    path: of the graph, which is not changed; answers: whether false blocks are looked for over answers too.

    Raises RunFailed where the graph computes NaN or infinity, or the disk is full.
    """
    plans, places = exported.plans, find_places(path)
    probe = partial(GraphProber, path, pad_id=exported.pad_id, eos=exported.eos, quiet=exported.settings.quiet)
    # Nothing is refused while the graph is probed, or answers would end in the hypercubes that were fitted in float32.
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
    old = {layer: torch.from_numpy(held[name].copy()) for layer, name in places.bounds.items()}
    bounds, key_spaces = refit_key_space(prober, old, exported, answers=answers)
    constants |= {places.bounds[layer]: cubes.numpy() for layer, cubes in bounds.items()}
    buffers |= {in_mlp(layer, KSD_BOUNDS): cubes for layer, cubes in bounds.items()}
    report = [query for plan in plans if plan.skill.blocks for query in plan.forget.report]
    by_place = {list(old).index(layer): cubes for layer, cubes in bounds.items()}
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


def refit_key_space(
    prober: GraphProber, old: Mapping[int, Tensor], exported: Exported, *, answers: bool
) -> tuple[dict[int, Tensor], dict[str, dict[str, Any]]]:
    """Fit, calibrate and report every skill's hypercubes, at the layer that the export chose.

    prober: its taps are the keys of the layers of `old`, in their order, and its hypercubes hold nothing; old: the
    bounds that were fitted in float32, by layer.

    Returns the bounds (c, 2, d_ff) float32 of all skills' hypercubes by layer, and by skill what was measured on the
    report parts; there `false_blocks_over_answers` is null without answers.
    """
    blocking = [plan for plan in exported.plans if plan.skill.blocks]
    if not blocking:
        return {}, {}
    layers = list(old)
    parts = [(plan.forget, plan.retain) for plan in blocking]
    evidence = gather(prober, exported.formatter, parts, ANSWER_TOKENS if answers else 0)
    cubes: dict[int, list[Tensor]] = {}
    found = {}
    for plan, own in zip(blocking, evidence, strict=True):
        known, skill = exported.known[plan.skill.name], plan.skill
        place = layers.index(known.layer)
        # The layer is its place among the tapped ones: the prober knows no others.
        decision = decide(own, replace(skill, layer=place), kinds_known=True)
        cubes.setdefault(known.layer, []).append(own.keys.bounds(place, decision.alpha.value))
        before = inside(prober, plan.forget.report, {place: old[known.layer]}, "forget set: report, not fitted anew")
        limits = measure_limits(prober, exported.formatter, own, decision, exported.settings.refusal)
        found[skill.name] = {
            "layer": known.layer,
            "hypercubes": list(own.keys.formats),
            "alpha_before": known.alpha.model_dump(),
            "separates": decision.separates,
            "fault": None if decision.separates else fault_of(own, decision, plan, known.layer),
            "alpha": asdict(decision.alpha),
            "max_false_block": skill.max_false_block,
            "target_block_rate": skill.target_block_rate,
            "blocked_without_refitting": rate(sum(before), len(before)).as_json(),
            "blocked": rates(decision.blocked),
            "blocked_in_unseen_formats": rates(decision.blocked_unseen),
            "false_blocks": rates(decision.false_blocks),
            "false_blocks_over_answers": rates(decision.false_answers) if answers else None,
            "limits": rates(limits),
        }
    return {layer: torch.cat(bounds) for layer, bounds in cubes.items()}, found


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
