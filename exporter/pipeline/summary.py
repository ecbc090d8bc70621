"""The summary of an export, from its plan and findings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict

from exporter.checkpoint.findings import Findings, Plan
from exporter.checkpoint.region_summary import detection_summary
from exporter.checkpoint.summary import (
    AlphaSummary,
    BaseModelClass,
    FrameSummary,
    KeySpaceSummary,
    LayerSummary,
    NeuronSummary,
    SkillSummary,
    SourceSummary,
    Summary,
    TextEffectSummary,
    TrialSummary,
)
from exporter.common.rates import rates
from exporter.common.version import __version__
from exporter.methods.key_space.evidence import Decision, Evidence, LayerRow
from exporter.methods.neurons.applied import layer_counts
from exporter.methods.neurons.choice import NeuronChoice, TextEffect, TextSet
from exporter.methods.outcome import SkillOutcome
from exporter.pipeline.outcome_warnings import of_outcomes, shared_neurons
from exporter.prompts.skills import SkillPlan
from exporter.recipes.settings import SkillSettings


def summarise(plan: Plan, findings: Findings) -> Summary:
    """Everything measured, without paths or prompt texts."""
    settings, states, outcomes = plan.settings, findings.states, findings.outcomes
    shared = shared_neurons(outcomes)
    return Summary(
        unskill=__version__,
        model=plan.base.name,
        revision=plan.base.revision,
        dtype=str(findings.loaded.model.dtype).removeprefix("torch."),
        seed=settings.seed,
        draws=settings.draws,
        compat=settings.compat,
        formats=findings.formats,
        neurons_changed=findings.changes.count(),
        base_model_class=BaseModelClass.model_validate(
            {"closed": states.closed, "second": states.second, **states.measured}
        )
        if states
        else None,
        skills=tuple(skill_summary(outcome, findings.effects) for outcome in outcomes),
        blocked_by_any=rates(findings.blocked_by_any) if findings.blocked_by_any else None,
        shared_neurons=tuple(found for found, _ in shared),
        warnings=(*plan.warnings, *of_outcomes(outcomes, findings.effects, shared)),
    )


def sizes_of(plan: SkillPlan) -> dict[str, dict[str, int]]:
    """Numbers of prompts by side and part."""
    if plan.parts is not None:
        sides = {"forget": plan.parts.plain("asked"), "retain": plan.parts.plain("answered")}
    else:
        sides = {"forget": vars(plan.forget), "retain": vars(plan.retain)}
    return {side: {name: len(part) for name, part in parts.items()} for side, parts in sides.items()}


def skill_summary(outcome: SkillOutcome, effects: Mapping[TextSet, TextEffect]) -> SkillSummary:
    skill, plan = outcome.skill, outcome.plan
    own = {side: each for (name, side), each in effects.items() if name == skill.name}
    return SkillSummary(
        name=skill.name,
        method=skill.method,
        works=outcome.works,
        sources=tuple(SourceSummary(**asdict(source)) for source in plan.prompts.records),
        parts=sizes_of(plan),
        neurons=neuron_summary(skill, outcome.neurons, own) if outcome.neurons else None,
        key_space=detection_summary(skill, outcome.detection)
        if outcome.detection
        else key_space_summary(outcome, outcome.evidence, outcome.decision)
        if outcome.evidence and outcome.decision
        else None,
    )


def neuron_summary(skill: SkillSettings, choice: NeuronChoice, effects: Mapping[str, TextEffect]) -> NeuronSummary:
    """effects: of the skill's texts, by side."""
    return NeuronSummary(
        score=choice.score,
        beta=choice.beta,
        within_budget=choice.within_budget,
        max_retain_loss=skill.max_retain_loss,
        tokens={"forget": choice.forget.gaussian.count, "retain": choice.retain.gaussian.count},
        neurons=choice.changes.count(),
        layers={layer: sum(counts.values()) for layer, counts in layer_counts(choice.changes).items()},
        trials=tuple(TrialSummary(**asdict(trial)) for trial in choice.trials),
        texts={
            side: TextEffectSummary(**asdict(each), perplexity_ratio=math.exp(each.rise))
            for side, each in effects.items()
        },
    )


def key_space_summary(outcome: SkillOutcome, evidence: Evidence, decision: Decision) -> KeySpaceSummary:
    return KeySpaceSummary(
        hypercubes=tuple(evidence.keys.formats),
        layer=decision.layer,
        alpha=AlphaSummary(**asdict(decision.alpha)),
        separates=decision.separates,
        fault=decision.fault,
        max_false_block=outcome.skill.max_false_block,
        target_block_rate=outcome.skill.target_block_rate,
        blocked=rates(decision.blocked),
        blocked_in_unseen_formats=rates(decision.blocked_unseen),
        false_blocks=rates(decision.false_blocks),
        false_blocks_over_answers=rates(decision.false_answers),
        everyday_kinds_over_answers=rates(decision.kinds),
        limits=rates(outcome.limits),
        frames=tuple(FrameSummary(**check.figures()) for check in outcome.frames),
        layers=tuple(map(layer_summary, decision.table)),
    )


def layer_summary(row: LayerRow) -> LayerSummary:
    return LayerSummary(
        layer=row.choice.layer,
        choose_alpha=row.choice.alpha,
        choose_false_blocks_over_answers=row.choice.false_blocks,
        choose_harmless=row.choice.harmless,
        choose_unseen_alpha=row.choice.unseen_alpha,
        choose_unseen_false_blocks=row.choice.unseen_false_blocks,
        margin=row.choice.margin,
        alpha=row.alpha,
        blocked=rates(row.blocked),
        everyday=rates(row.everyday_prompts),
        retain=rates(row.retain_prompts),
        over_answers=rates(row.answers),
    )
