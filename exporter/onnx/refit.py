"""Interventions fitted anew on a quantised graph: what quantised weights move is measured on the file that ships.

SmolLM2, GSM8K, layer 20: under int8 and int4 weights the keys of forget prompts lie 15 to 38 deviations from the
centre of the hypercube that was fitted in float32, where its alpha is about 3, and overlap with those of retain
prompts; a hypercube fitted on the quantised graph separates them as before.

Nothing is computed here in another way than at the export: parts, formats, seed, layer and neurons are its own, and
`exporter.evidence` fits, calibrates and reports. Only the model is another, and it runs in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom_modeling.key_space import inside_hypercubes
from exporter.calibration import Rate, rate
from exporter.evidence import ANSWER_TOKENS, Decision, Evidence, decide, gather, measure_limits
from exporter.formats import Formatter
from exporter.neuron_choice import effect, measure_effects, text_sets
from exporter.neuron_statistics import floored
from exporter.onnx.graph_probe import GraphProber, probing
from exporter.onnx.runners import Array
from exporter.onnx.surgery import STANDARDISERS, Places, closed_bounds, find_places, read_constants
from exporter.onnx.symbolic import constants_of
from exporter.skills import SkillPlan, SkillTexts
from exporter.summary import rates
from exporter.text_probe import longest_first


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

    constants: dict[str, Array]
    buffers: dict[str, Tensor]
    skills: list[dict[str, Any]]
    faults: list[str]
    refused: list[tuple[tuple[int, ...], bool]]


def refit(
    path: Path,
    plans: Sequence[SkillPlan],
    formatter: Formatter,
    adjusted: Adjusted,
    known: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    refusal: str,
    bos_id: int | None,
    answers: bool,
    probe: Mapping[str, Any],
) -> Refit:
    """Fit the neurons' distributions anew, then hypercubes on the keys that they give.

    path: of the quantised graph; plans: the export's skills; known: of each skill what the export's summary says;
    answers: whether false blocks are looked for over answers too; probe: settings of `GraphProber`.

    Raises RunFailed where the graph computes NaN or infinity, or the disk is full.
    """
    places = find_places(path)
    shut = {name: closed_bounds(bounds.shape) for name, bounds in read_constants(path, places.bounds.values()).items()}
    sets = text_sets(plans)
    constants: dict[str, Array] = {}
    buffers: dict[str, Tensor] = {}
    found: dict[str, dict[str, Any]] = {plan.skill.name: {} for plan in plans}
    before = {}
    if places.least is not None:
        (plan,) = (each for each in plans if each.skill.adjusts)
        assert plan.texts is not None
        # Under an infinite threshold no neuron is moved.
        still = {name: values + float("inf") for name, values in read_constants(path, [places.least]).items()}
        with probing(path, list(places.values.values()), shut | still, **probe) as prober:
            moved, found[plan.skill.name]["neurons"] = refit_neurons(prober, plan.texts, adjusted, bos_id)
            before = measure_effects(prober, sets, "texts, neurons as they were")
        constants = neuron_constants(places, moved)
        buffers = {f"layers.{layer}.mlp.unskill_na_params": each for layer, each in moved.items()}
    with probing(path, list(places.keys.values()), shut | constants, **probe) as prober:
        if places.least is not None:
            after = measure_effects(prober, sets, "texts, neurons changed")
            for name, each in before.items():
                skill, _, side = name.rpartition(": ")
                texts = found[skill].setdefault("neurons", {}).setdefault("texts", {})
                texts[side] = asdict(effect(each, after[name], seed))
        cubes = KeySpaceRefit(prober, places, formatter, refusal, answers)
        blocking = [plan for plan in plans if plan.skill.blocks]
        evidence = cubes.gather(blocking)
        old = read_constants(path, places.bounds.values())
        faults = []
        bounds: dict[str, list[Tensor]] = {}
        for plan, own in zip(blocking, evidence, strict=True):
            decision = decide(own, cubes.layer_of(plan, known), kinds_known=True)
            layer = cubes.layers[decision.layer]
            name = places.bounds[layer]
            bounds.setdefault(name, []).append(own.keys.bounds(decision.layer, decision.alpha.value))
            lost = cubes.blocked_before(plan, decision.layer, torch.from_numpy(old[name].copy()))
            before_alpha = next(one["key_space"] for one in known if one["name"] == plan.skill.name)["alpha"]
            found[plan.skill.name]["key_space"] = cubes.summary(own, decision, plan, before_alpha, lost)
            if decision.fault is not None:
                faults.append(f"{plan.skill.name}: {cubes.fault(decision, plan)}")
        whole = {name: torch.cat(each) for name, each in bounds.items()}
        constants |= {name: each.numpy() for name, each in whole.items()}
        buffers |= {f"layers.{layer}.mlp.unskill_ksd_bounds": whole[name] for layer, name in places.bounds.items()}
        refused = cubes.refused(blocking, whole)
    skills = [{"name": name, "neurons": None, "key_space": None} | each for name, each in found.items()]
    return Refit(constants, buffers, skills, faults, refused)


def refit_neurons(
    prober: GraphProber, texts: SkillTexts, adjusted: Adjusted, bos_id: int | None
) -> tuple[dict[int, Tensor], dict[str, Any]]:
    """Mean and deviation of the selected neurons on forget and retain texts of the fit parts: (4, n) float32 by layer,
    in the form of `Adjusted.params`; and what is to be told of them. The prober's taps are their pre-activations."""
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
    made = constants_of(params)
    assert places.least is not None
    found = {places.least: made["least"].numpy()}
    for name in places.standardisers.values():
        match = STANDARDISERS.search(name)
        assert match is not None
        found[name] = made[f"standardisers_{match[1]}"].numpy()
    return found


class KeySpaceRefit:
    """Hypercubes on a graph whose taps are the keys of the layers that have any, and which has its neurons moved."""

    def __init__(self, prober: GraphProber, places: Places, formatter: Formatter, refusal: str, answers: bool) -> None:
        self._prober, self._formatter, self._refusal, self._answers = prober, formatter, refusal, answers
        self.layers = list(places.bounds)
        self._bounds = list(places.bounds.values())

    def gather(self, plans: Sequence[SkillPlan]) -> list[Evidence]:
        if not plans:
            return []
        pairs = [(plan.forget, plan.retain) for plan in plans]
        return gather(self._prober, self._formatter, pairs, ANSWER_TOKENS if self._answers else 0)

    def layer_of(self, plan: SkillPlan, known: Sequence[Mapping[str, Any]]) -> Any:
        """The skill's settings with the layer that the export chose, by its place among the tapped ones."""
        (own,) = (each["key_space"] for each in known if each["name"] == plan.skill.name)
        return replace(plan.skill, layer=self.layers.index(own["layer"]))

    def blocked_before(self, plan: SkillPlan, place: int, bounds: Tensor) -> Rate:
        """How many forget prompts of the report part the hypercubes hold that were fitted in float32."""
        return rate(
            sum(
                int(inside_hypercubes(keys[:, place], bounds).sum())
                for _, keys in self._prober.last_token_keys(plan.forget.report, "forget set: report, as exported")
            ),
            len(plan.forget.report),
        )

    def refused(self, plans: Sequence[SkillPlan], bounds: Mapping[str, Tensor]) -> list[tuple[tuple[int, ...], bool]]:
        """The forget prompts of the report parts, and whether a hypercube of any skill holds their last token."""
        queries = [query for plan in plans for query in plan.forget.report]
        inside = torch.zeros(len(queries), dtype=torch.bool)
        for rows, keys in self._prober.last_token_keys(queries, "forget set: report, refitted"):
            for place, name in enumerate(self._bounds):
                inside[rows] |= inside_hypercubes(keys[:, place], bounds[name])
        return [(query.ids, hit) for query, hit in zip(queries, inside.tolist(), strict=True)]

    def fault(self, decision: Decision, plan: SkillPlan) -> str:
        """Why the hypercubes do not separate."""
        row = decision.table[decision.layer]
        limit, choice = plan.skill.max_false_block, row.choice
        if choice.false_block_rate > limit:
            return (
                f"at layer {self.layers[decision.layer]} hypercubes fitted on the quantised graph hold "
                f"{choice.false_blocks} of {choice.harmless} harmless prompts (--max-false-block {limit})"
            )
        fault = decision.fault
        assert fault is not None
        return fault.replace(f"layer {decision.layer} ", f"layer {self.layers[decision.layer]} ", 1)

    def summary(
        self, evidence: Evidence, decision: Decision, plan: SkillPlan, before: Mapping[str, Any], lost: Rate
    ) -> dict[str, Any]:
        """Everything measured, on the report parts; `false_blocks_over_answers` is null where none were written."""
        limits = measure_limits(self._prober, self._formatter, evidence, decision, self._refusal)
        return {
            "layer": self.layers[decision.layer],
            "hypercubes": list(evidence.keys.formats),
            "alpha_before": before,
            "alpha": asdict(decision.alpha),
            "separates": decision.separates,
            "fault": None if decision.separates else self.fault(decision, plan),
            "max_false_block": plan.skill.max_false_block,
            "target_block_rate": plan.skill.target_block_rate,
            "blocked_without_refitting": lost.as_json(),
            "blocked": rates(decision.blocked),
            "blocked_in_unseen_formats": rates(decision.blocked_unseen),
            "false_blocks": rates(decision.false_blocks),
            "false_blocks_over_answers": rates(decision.false_answers) if self._answers else None,
            "limits": rates(limits),
        }
