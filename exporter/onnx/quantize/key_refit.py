"""Hypercubes fitted anew on a graph whose taps are the keys of the layers that have any (section 4 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from custom_modeling.key_space import inside_hypercubes
from exporter.checkpoint.sentences import rates
from exporter.methods.key_space.calibration import Rate, rate
from exporter.methods.key_space.evidence import (
    ANSWER_TOKENS,
    Decision,
    Evidence,
    count,
    decide,
    gather,
    measure_limits,
)
from exporter.onnx.quantize.graph_probe import GraphProber
from exporter.prompts.formats import Formatter, Query
from exporter.prompts.skills import SkillPlan


@dataclass(frozen=True)
class KeyRefit:
    """bounds: by layer (c, 2, d_ff) float32 of all skills' hypercubes there; skills: what was found, by name; faults,
    refused: see `exporter.onnx.quantize.refit.Refit`."""

    bounds: dict[int, Tensor] = field(default_factory=dict)
    skills: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    refused: list[tuple[tuple[int, ...], bool]] = field(default_factory=list)


def refit_key_space(
    prober: GraphProber,
    old: Mapping[int, Tensor],
    plans: Sequence[SkillPlan],
    formatter: Formatter,
    known: Mapping[str, Mapping[str, Any]],
    refusal: str,
    answers: bool,
) -> KeyRefit:
    """Fit, calibrate and report every skill's hypercubes, at the layer that the export chose.

    prober: its taps are the keys of the layers of `old`, in their order, and its hypercubes hold nothing; old: the
    bounds that were fitted in float32, by layer; known: by skill, its "layer" and "alpha" in the export's summary.
    """
    blocking = [plan for plan in plans if plan.skill.blocks]
    if not blocking:
        return KeyRefit()
    layers = list(old)
    parts = [(plan.forget, plan.retain) for plan in blocking]
    evidence = gather(prober, formatter, parts, ANSWER_TOKENS if answers else 0)
    cubes: dict[int, list[Tensor]] = {}
    found = KeyRefit()
    for plan, own in zip(blocking, evidence, strict=True):
        layer = int(known[plan.skill.name]["layer"])
        place = layers.index(layer)
        # The layer is its place among the tapped ones, whose keys are all that there is.
        decision = decide(own, replace(plan.skill, layer=place), kinds_known=True)
        cubes.setdefault(layer, []).append(own.keys.bounds(place, decision.alpha.value))
        fault = None if decision.separates else fault_of(own, decision, plan, layer)
        if fault is not None:
            found.faults.append(f"{plan.skill.name}: {fault}")
        before = inside(prober, plan.forget.report, {place: old[layer]}, "forget set: report, not fitted anew")
        limits = measure_limits(prober, formatter, own, decision, refusal)
        found.skills[plan.skill.name] = {
            "layer": layer,
            "hypercubes": list(own.keys.formats),
            "alpha_before": known[plan.skill.name]["alpha"],
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
        hits, total = count(evidence.retain_choose.answer[:, decision.layer], alpha)
    return (
        f"on the quantised graph the hypercubes of layer {layer}, at alpha {alpha:.1f}, refuse {hits} of {total} "
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
