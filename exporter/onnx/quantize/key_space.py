"""Regions of the key space fitted anew on a quantized graph, at the layer that the export chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from custom_modeling.buffers import KSD_BOUNDS, KSD_DIRECTIONS, KSD_LIMITS
from custom_modeling.key_space import inside_hypercubes, inside_regions
from exporter.checkpoint.region_summary import detection_summary
from exporter.checkpoint.summary import KeySpaceSummary
from exporter.common.rates import rate, rates
from exporter.methods.key_space.detection import Detection, detect
from exporter.methods.key_space.evidence import (
    ANSWER_TOKENS,
    Decision,
    Evidence,
    decide,
    gather,
    measure_limits,
    rate_within,
)
from exporter.methods.key_space.regions import joined
from exporter.onnx.quantize.again import Exported
from exporter.onnx.quantize.graph_probe import GraphProber
from exporter.prompts.formats import Query
from exporter.prompts.region_parts import RegionParts
from exporter.prompts.skills import SkillPlan
from exporter.recipes.settings import SkillSettings

Buffers = Mapping[str, Tensor]
"""The regions of one MLP, by the names of its buffers."""


def refit_key_space(
    prober: GraphProber, old: Mapping[int, Buffers], exported: Exported, *, answers: bool
) -> tuple[dict[int, dict[str, Tensor]], dict[str, dict[str, Any]]]:
    """Fit, calibrate and report every skill's regions, of the export's kind and at the layer that it chose.

    prober: its taps are the keys of the layers of `old`, in their order, and its regions hold nothing; old: the
    regions that were fitted in float32, by layer.

    Returns the buffers of all skills' regions by layer, with the shapes that they had, and by skill what was measured
    on the report parts; there `false_blocks_over_answers` is null without answers.
    """
    blocking = [plan for plan in exported.plans if plan.skill.blocks]
    layers = list(old)
    cubes = [(plan.forget, plan.retain) for plan in blocking if plan.parts is None]
    evidence = iter(gather(prober, exported.formatter, cubes, ANSWER_TOKENS if answers else 0) if cubes else ())
    parts: dict[int, list[Buffers]] = {}
    found = {}
    for plan in blocking:
        known = exported.known[plan.skill.name]
        # The layer is its place among the tapped ones: the prober knows no others.
        place = layers.index(known.layer)
        skill = replace(plan.skill, layer=place)
        if plan.parts is None:
            buffers, figures = refit_hypercubes(prober, skill, next(evidence), exported, answers=answers)
        else:
            buffers, figures = refit_regions(prober, skill, plan.parts, known, answers=answers)
        parts.setdefault(known.layer, []).append(buffers)
        asked, harmless = asked_of(plan), plan.retain.report
        before = inside(prober, [*asked, *harmless], {place: old[known.layer]}, "report part, not fitted anew")
        hits, false = before[: len(asked)], before[len(asked) :]
        found[plan.skill.name] = {
            "layer": known.layer,
            "region": plan.skill.region,
            "alpha_before": known.alpha.model_dump(),
            "blocked_without_refitting": rate(sum(hits), len(hits)).as_json(),
            "false_blocks_without_refitting": rate(sum(false), len(false)).as_json(),
        } | figures
    return {layer: joined(each) for layer, each in parts.items()}, found


def asked_of(plan: SkillPlan) -> Sequence[Query]:
    """The skill's forget prompts of the report part, along discriminants in every kind of turn."""
    return plan.forget.report if plan.parts is None else plan.parts.report.asked


def refit_hypercubes(
    prober: GraphProber, skill: SkillSettings, evidence: Evidence, exported: Exported, *, answers: bool
) -> tuple[Buffers, dict[str, Any]]:
    """Hypercubes of one skill and their figures. skill: its layer is a place among the taps."""
    decision = decide(evidence, skill, kinds_known=True)
    limits = measure_limits(prober, exported.formatter, evidence, decision, exported.settings.refusal)
    layer = exported.known[skill.name].layer
    return {KSD_BOUNDS: evidence.keys.bounds(decision.layer, decision.alpha.value)}, {
        "hypercubes": list(evidence.keys.formats),
        "separates": decision.separates,
        "fault": None if decision.separates else fault_of(evidence, decision, skill, layer),
        "alpha": asdict(decision.alpha),
        "max_false_block": skill.max_false_block,
        "target_block_rate": skill.target_block_rate,
        "blocked": rates(decision.blocked),
        "blocked_in_unseen_formats": rates(decision.blocked_unseen),
        "false_blocks": rates(decision.false_blocks),
        "false_blocks_over_answers": rates(decision.false_answers) if answers else None,
        "limits": rates(limits),
        "discriminant": None,
    }


def refit_regions(
    prober: GraphProber, skill: SkillSettings, parts: RegionParts, known: KeySpaceSummary, *, answers: bool
) -> tuple[Buffers, dict[str, Any]]:
    """Regions along discriminants of one skill, at the places where the export has any, and their figures. skill: its
    layer is a place among the taps."""
    detection = detect(prober, parts, skill, answers=answers, places=known.hypercubes)
    detection = numbered(detection, known.layer)
    figures = detection_summary(skill, detection).model_dump(mode="json", exclude={"frames", "layers"})
    if not answers:
        figures |= {"false_blocks_over_answers": None, "everyday_kinds_over_answers": None}
    if detection.fault is not None:
        figures["fault"] = f"on the quantized graph {detection.fault}"
    return detection.regions.buffers(detection.threshold), figures


def numbered(found: Detection, layer: int) -> Detection:
    """The same with the layer's number in the model."""
    chosen, *trials = (replace(trial, layer=layer) for trial in (found.chosen, *found.trials))
    return replace(found, regions=replace(found.regions, layer=layer), chosen=chosen, trials=tuple(trials))


def inside(prober: GraphProber, queries: Sequence[Query], layers: Mapping[int, Buffers], what: str) -> list[bool]:
    """Whether each query's last token is inside a region; layers: by their place among the taps."""
    held = torch.zeros(len(queries), dtype=torch.bool)
    for rows, keys in prober.last_token_keys(queries, what):
        for place, buffers in layers.items():
            held[rows] |= inside_layer(keys[:, place], buffers)
    return [bool(hit) for hit in held]


def inside_layer(keys: Tensor, buffers: Buffers) -> Tensor:
    """Whether each key (n, d_ff) is inside a region of its layer, as the runtime decides."""
    bounds = buffers.get(KSD_BOUNDS)
    if KSD_LIMITS not in buffers:
        return inside_hypercubes(keys, bounds)
    return inside_regions(keys, buffers[KSD_DIRECTIONS], buffers[KSD_LIMITS], bounds)


def fault_of(evidence: Evidence, decision: Decision, skill: SkillSettings, layer: int) -> str:
    """Why the hypercubes do not separate: too many harmless prompts of the choose part inside."""
    choice = decision.table[decision.layer].choice
    hits, total, alpha = choice.false_blocks, choice.harmless, choice.alpha
    if not choice.false_block_rate > skill.max_false_block:
        alpha = decision.alpha.value
        held = rate_within(evidence.retain_choose.answer[:, decision.layer], alpha)
        hits, total = held.hits, held.total
    return (
        f"on the quantized graph the hypercubes of layer {layer}, at alpha {alpha:.1f}, refuse {hits} of {total} "
        f"harmless prompts (--max-false-block {skill.max_false_block})"
    )
