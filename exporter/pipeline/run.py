"""`unskill export`, from prompts to a checkpoint, step by step."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path

import torch

from exporter.checkpoint.findings import Findings, Plan
from exporter.checkpoint.summary import Summary
from exporter.checkpoint.writing import write_checkpoint
from exporter.common.errors import BadInput, Rejected, RunFailed
from exporter.common.files import write_errors
from exporter.common.progress import Progress
from exporter.common.staging import Staging
from exporter.common.text import Notify
from exporter.methods.key_space.detection import detect as detect_regions
from exporter.methods.key_space.evidence import decide, gather, measure_limits
from exporter.methods.key_space.framing import measure_frames
from exporter.methods.key_space.region_probe import expected
from exporter.methods.neurons.applied import changed
from exporter.methods.neurons.choice import (
    NeuronChoice,
    choose_neurons,
    effect,
    measure_effects,
    probe_sides,
    single_rows,
    text_sets,
)
from exporter.methods.neurons.scores import united
from exporter.methods.neurons.statistics import NeuronSums
from exporter.methods.neurons.statistics_file import StatisticsFile, model_fingerprint
from exporter.methods.neurons.trade_off import Trial
from exporter.methods.outcome import SkillOutcome
from exporter.methods.refusal.head import RefusalStates, find_refusal_states
from exporter.models.library import silent_library
from exporter.models.loading import LoadedModel, load
from exporter.models.prober import Prober
from exporter.pipeline.card_charts import draw_figures
from exporter.pipeline.described import describe
from exporter.pipeline.over_skills import blocked_by_any
from exporter.pipeline.plan import plan
from exporter.pipeline.prepared import lines, prepared
from exporter.pipeline.summary import summarise
from exporter.prompts.formats import Formatter, Query
from exporter.prompts.skills import SkillPlan, SkillTexts
from exporter.recipes.recorded import Recorded
from exporter.recipes.settings import ExportSettings
from exporter.verification.apart import NotVerified, verify_apart

# Final states from which those of the closed base-model class are found, and as many to check them on.
STATES_POSITIONS = 3000

UNVERIFIED = "-unverified"
"""Added to OUT's name where the process that verifies the checkpoint could not."""

Sums = tuple[NeuronSums, NeuronSums]
"""Statistics of forget and retain texts."""
VERIFIED = "verifying the checkpoint"


def export(settings: ExportSettings, notify: Notify, recorded: Recorded | None = None) -> Summary:
    """Run the export and return its summary.

    recorded: what an earlier export read and was run with, where its recipe is followed.

    Raises BadInput for wrong usage or input, RunFailed where the run cannot go on or the checkpoint does not verify,
    Rejected, unless settings.force, where no layer separates a skill from the rest or no share of neurons is within
    budget. Nothing is written then; where the process that verifies the checkpoint could not, it is kept beside OUT.
    """
    return export_planned(plan(settings, notify, recorded), notify)


@silent_library()
def export_planned(planned: Plan, notify: Notify) -> Summary:
    """The same where what can be found wrong without torch has been looked at. Raises as `export`."""
    with Progress(planned.settings.quiet) as progress:
        return export_shown(planned, notify, progress)


def export_shown(planned: Plan, notify: Notify, progress: Progress) -> Summary:
    settings, loaded = planned.settings, None
    if any(each.skill.to_write for each in planned.skills):
        writer = load(planned.generator or planned.base, settings.dtype, settings.device, settings.threads)
        planned = describe(planned, writer, notify, progress)
        loaded = writer if planned.generator is None else None
        del writer  # two models need not fit into memory
    findings = run(planned, notify, progress, loaded)
    summary = summarise(planned, findings)
    if not settings.force and not all(outcome.works for outcome in findings.outcomes):
        raise Rejected(message(findings.outcomes), summary.to_json())
    draw = partial(draw_figures, outcomes=findings.outcomes, summary=summary) if planned.figures else None
    with Staging(settings.out, overwrite=settings.overwrite) as staging:
        with write_errors(settings.out, planned.size):
            write_checkpoint(staging.path, planned, findings, summary, draw)
        del loaded, findings, draw  # base and checkpoint need not fit into memory together
        try:
            check_written(staging.path, settings, progress)
        except NotVerified as error:
            kept = staging.keep(UNVERIFIED)
            raise NotVerified(
                f"{error}; the checkpoint is kept as {kept}: unskill verify {kept}, with more memory if it ran out, "
                f"and rename it to {settings.out.name} where that passes"
            ) from error
        staging.commit()
    return summary


def check_written(folder: Path, settings: ExportSettings, progress: Progress) -> None:
    """Verify the checkpoint that was written, loaded as a user would load it, before it becomes OUT.

    Raises RunFailed where a check fails, NotVerified where they could not be made.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the other process
    with progress.stage(VERIFIED, 0, "in a process of its own"):
        checks = verify_apart(folder, settings.device, settings.threads)
    for check in checks:
        if check["ok"] is False:
            detail = check["detail"].replace(folder.name, settings.out.name)
            raise RunFailed(
                f"nothing was written, as the checkpoint does not pass unskill verify ({check['name']}: {detail}); "
                "this is a fault of unskill: please report it"
            )


def run(planned: Plan, notify: Notify, progress: Progress, loaded: LoadedModel | None = None) -> Findings:
    """Load the model, unless it is given, choose neurons, and fit and calibrate hypercubes. Raises as `export`, but
    never Rejected."""
    settings = planned.settings
    first = prepared(planned, notify, progress, loaded)
    for line in lines(planned, first):
        notify(line)
    for one in first.plans:
        if one.parts is not None:
            progress.expect(expected(first.prober, one.parts, one.skill))
    loaded, prober, formatter, plans = first
    stored = stored_sums(settings.statistics, loaded, plans) if settings.statistics else {}
    choices = [choose(each, prober, settings, stored.get(each.skill.name), notify) for each in plans]
    changes = united([choice.changes for choice in choices if choice is not None])
    sets = text_sets(plans)
    before = measure_effects(prober, sets, "texts, base model")
    with changed(loaded, changes, settings.seed, settings.draws, settings.compat):
        # All hypercubes are fitted and calibrated on the keys of the model as it will be.
        prober = single_rows(prober, settings)
        if changes.count():
            prober = replace(prober, kept=None)  # what is kept is the base's
        after = measure_effects(prober, sets, "texts, neurons changed")
        outcomes = detect(plans, choices, prober, formatter, settings)
        by_any = blocked_by_any(prober, outcomes)
        states = refusal_states(prober, plans, planned.token.id) if planned.token else None
    return Findings(
        loaded=loaded,
        formats=tuple(formatter.formats_used),
        outcomes=tuple(outcomes),
        changes=changes,
        effects={name: effect(before[name], after[name], settings.seed) for name in before},
        states=states,
        halved=first.prober.halved,
        blocked_by_any=by_any,
    )


def choose(
    plan: SkillPlan, prober: Prober, settings: ExportSettings, sums: Sums | None, notify: Notify
) -> NeuronChoice | None:
    """The neurons that the skill changes; None where its method changes none. sums: of its fit parts, if known."""
    if plan.texts is None:
        return None

    def show(trial: Trial) -> None:
        everyday = "" if trial.everyday_rise is None else f", everyday {trial.everyday_rise:+.4f}"
        notify(
            f"{plan.skill.name}: {trial.score} {trial.beta:g} %: loss of forget texts {trial.forget_rise:+.4f}, "
            f"retain {trial.retain_rise:+.4f}{everyday} (upper end {trial.upper:+.4f}) nats per token"
        )

    sums = sums or probe_sides(prober, plan.texts, plan.skill.name)
    return choose_neurons(prober, plan.skill, settings, plan.texts, sums, show)


def stored_sums(path: Path, loaded: LoadedModel, plans: Sequence[SkillPlan]) -> dict[str, Sums]:
    """What `unskill probe` wrote, by skill. Raises BadInput where that is of another model, or not of all texts."""
    file = StatisticsFile.load(path, "--statistics")
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    if (file.model, file.dtype) != (model_fingerprint(loaded), dtype):
        raise BadInput(f"--statistics: {path.name} is of another model than {loaded.name} in {dtype}")

    def sums(skill: str, texts: SkillTexts, side: str) -> NeuronSums:
        probed = file.find(getattr(texts, side)["fit"], side)
        if probed is None or not probed.whole or probed.sums is None:
            raise BadInput(
                f"--statistics: {path.name} does not have the {side} texts of {skill}: probe with the same sources, "
                "seed and everyday prompts"
            )
        return probed.sums

    changing = [(plan.skill.name, plan.texts) for plan in plans if plan.texts is not None]
    return {name: (sums(name, texts, "forget"), sums(name, texts, "retain")) for name, texts in changing}


def detect(
    plans: Sequence[SkillPlan],
    choices: Sequence[NeuronChoice | None],
    prober: Prober,
    formatter: Formatter,
    settings: ExportSettings,
) -> list[SkillOutcome]:
    """Fit and judge the hypercubes of the skills that have any, on the model as it is now."""
    blocking = [plan for plan in plans if plan.skill.blocks and plan.parts is None]
    found = iter(gather(prober, formatter, [(plan.forget, plan.retain) for plan in blocking]))
    outcomes = []
    for each, choice in zip(plans, choices, strict=True):
        if not each.skill.blocks:
            outcomes.append(SkillOutcome(each, choice))
            continue
        if each.parts is not None:
            outcomes.append(SkillOutcome(each, choice, detection=detect_regions(prober, each.parts, each.skill)))
            continue
        evidence = next(found)
        decision = decide(evidence, each.skill)
        limits = measure_limits(prober, formatter, evidence, decision, settings.refusal)
        frames = measure_frames(prober, formatter, evidence, decision)
        outcomes.append(SkillOutcome(each, choice, evidence, decision, limits, frames))
    return outcomes


def refusal_states(prober: Prober, plans: Sequence[SkillPlan], refusal_id: int) -> RefusalStates:
    """Final states by which any head refuses, found on the choose parts of all skills and checked on report parts."""
    found = [side for plan in plans for side in (plan.forget.choose, plan.retain.choose)]
    checked = [side for plan in plans for side in (plan.forget.report, plan.retain.report)]
    loaded = prober.loaded
    return find_refusal_states(
        loaded.model,
        prober.final_states(spread(*found), "refusal states: find"),
        prober.final_states(spread(*checked), "refusal states: check"),
        refusal_id,
        loaded.eos_ids,
    )


def message(outcomes: Sequence[SkillOutcome]) -> str:
    """Why nothing was written, in one line."""
    reasons = []
    for outcome in outcomes:
        skill = outcome.skill
        whose = f"{skill.name}: " if len(outcomes) > 1 else ""
        if outcome.neurons is not None and not outcome.neurons.within_budget:
            reasons.append(
                f"{whose}no tried share of neurons keeps the rise of the retain loss within --max-retain-loss "
                f"{skill.max_retain_loss} and raises the forget loss"
            )
        if outcome.fault is not None:
            reasons.append(f"{whose}{outcome.fault}")
    return (
        f"{'; '.join(reasons)}; nothing was written (see the tables; --everyday-without leaves out kinds that belong "
        "to the skill, a greater limit or --force writes anyway)"
    )


def spread(*sides: Sequence[Query]) -> list[Query]:
    """Queries of all sides in turn, as many as make STATES_POSITIONS positions."""
    chosen: list[Query] = []
    positions = 0
    for query in chain.from_iterable(zip_longest(*sides)):
        if query is not None and positions < STATES_POSITIONS:
            chosen.append(query)
            positions += len(query.ids)
    return chosen
