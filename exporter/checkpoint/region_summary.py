"""The summary of regions along discriminants, from what was found for a skill."""

from __future__ import annotations

from dataclasses import asdict

from exporter.checkpoint.summary import (
    AlphaSummary,
    DiscriminantSummary,
    KeySpaceSummary,
    LayerTrialSummary,
    PromiseSummary,
    StoredRate,
)
from exporter.common.rates import rates
from exporter.methods.key_space.budget import CONFIDENCE
from exporter.methods.key_space.detection import Detection
from exporter.methods.key_space.region_fit import LayerTrial
from exporter.prompts.formats import Query
from exporter.prompts.packaged_skills import is_near_miss
from exporter.recipes.settings import SkillSettings


def detection_summary(skill: SkillSettings, found: Detection) -> KeySpaceSummary:
    """What was found for a skill with these settings."""
    answers = found.answer_hits()
    return KeySpaceSummary(
        hypercubes=found.regions.places,
        layer=found.regions.layer,
        alpha=AlphaSummary(
            value=found.threshold,
            calibrated_on=found.blocked.total,
            promise=found.blocked.bound if skill.alpha is None else None,
            confidence=CONFIDENCE if skill.alpha is None else None,
        ),
        separates=found.fault is None,
        fault=found.fault,
        max_false_block=skill.max_false_block,
        target_block_rate=skill.target_block_rate,
        blocked=rates(found.rates("asked", lambda query: query.prompt.source)),
        false_blocks=rates(
            found.rates("answered", lambda query: query.prompt.source)
            | found.rates("after", lambda query: query.prompt.source)
        ),
        false_blocks_over_answers=rates(answers),
        everyday_kinds_over_answers=rates(found.kinds()),
        frames=(),
        layers=(),
        discriminant=DiscriminantSummary(
            places=found.regions.places,
            left_out=trial_summary(found.chosen),
            trials=tuple(map(trial_summary, found.trials)),
            blocked=PromiseSummary(**asdict(found.blocked)),
            false_blocks=PromiseSummary(**asdict(found.false_blocks)),
            near_misses=PromiseSummary(**asdict(found.near_misses)),
            after_refusals=PromiseSummary(**asdict(found.after_refusals)),
            forms=rates(found.rates("asked", form, lambda query: query.prompt.form is not None)),
            near_miss_forms=rates(found.rates("answered", form, lambda query: is_near_miss(query.prompt))),
            answers=StoredRate.model_validate(found.over_answers.as_json()),
            answer_tokens=found.answer_tokens,
            phrases={name: count for name, count in sorted(found.phrases.items()) if count > 1},
            interior=StoredRate.model_validate(found.interior.as_json()),
            words=StoredRate.model_validate(found.words.as_json()),
        ),
    )


def form(query: Query) -> str:
    return query.prompt.form or ""


def trial_summary(trial: LayerTrial) -> LayerTrialSummary:
    return LayerTrialSummary(mean=trial.mean, **asdict(trial))
