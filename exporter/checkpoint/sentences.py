"""The summary of an export in sentences and rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from exporter.checkpoint.summary import (
    AlphaSummary,
    DiscriminantSummary,
    MeasuredRates,
    NeuronSummary,
    StoredRate,
    Summary,
)
from exporter.common.text import counted

DESCRIBED = "--describe"
"""The flag of a source whose prompts a model wrote."""


def promise(
    layer: int,
    alpha: AlphaSummary,
    fault: str | None,
    dtype: str,
    regions: DiscriminantSummary | None = None,
    flags: Collection[str] = (),
    neurons: bool = False,
) -> str:
    """What one skill's regions promise. fault: why they do not separate, None where they do; dtype: of the model that
    they were fitted on; regions: of regions along discriminants, whose threshold alpha is; flags: of the sources;
    neurons: whether the checkpoint has changed neurons."""
    size = "alpha" if regions is None else "threshold"
    text = f"Key Space Detection at layer {layer}, {size} {alpha.value:.3f}. "
    if fault is not None:
        text += f"NOT SEPARATED: {fault}. "
    if alpha.promise is None:
        return text + f"{size.capitalize()} was given, so nothing is promised about further prompts."
    if regions is not None:
        return text + promise_of_regions(regions, dtype, flags, neurons)
    wordings = "what people write" if DESCRIBED in flags else "other wordings"
    formats = ", in the same formats," if DESCRIBED in flags else " and formats"
    return text + (
        f"With {alpha.confidence:.0%} confidence in the draw of the {alpha.calibrated_on} calibration prompts, "
        f"at least {alpha.promise:.1%} of further prompts {origin(flags, 'from the same source')}{formats} are "
        f"blocked ({dtype}). No promise for {wordings}."
    )


def origin(flags: Collection[str], same: str) -> str:
    """Where the prompts come from that a promise is about. same: how it is said of sources."""
    if DESCRIBED not in flags:
        return same
    others = f" {same} and" if {"--forget", "--skill"} & set(flags) else ""
    return f"{others} that this generator writes from the description".lstrip()


def promise_of_regions(found: DiscriminantSummary, dtype: str, flags: Collection[str], neurons: bool) -> str:
    worst = min(found.left_out.blocked, key=found.left_out.blocked.__getitem__)
    seen = ", answers by the final ones" if found.answer_tokens else ""
    seen += ", and the neurons were chosen on some of these prompts" if neurons else ""
    text = (
        f"With 90 % confidence each, in the draw of the prompts and in {dtype}, each prompt judged by directions that "
        f"had not seen it{seen}: at least {found.blocked.bound:.1%} of further forget prompts "
        f"{origin(flags, 'from the same sources')} are blocked in a plain message "
        f"({found.blocked.hits} of {found.blocked.total}), and at most "
        f"{found.false_blocks.bound:.1%} of further prompts that are to be answered, in the kinds of turn that each "
        f"was put into ({found.false_blocks.hits} of {found.false_blocks.total})"
    )
    if (near := found.near_misses).total:
        text += f", {near.bound:.1%} of near misses ({near.hits} of {near.total})"
    if (after := found.after_refusals).total:
        text += f", {after.bound:.1%} of harmless messages after a refusal ({after.hits} of {after.total})"
    text += ". No promise for what people write" if DESCRIBED in flags else ""
    least = f", least of all {worst} with {found.left_out.blocked[worst]:.1%}" if worst else ""
    answers = found.answers
    inside = (
        f"Of {answers.total} harmless answers of the report part {answers.hits} have a position inside, looked at "
        f"for up to {found.answer_tokens} tokens"
        if found.answer_tokens
        else "Harmless answers were not looked at"
    )
    return text + (
        f". {inside}; of {found.interior.total} positions inside harmless prompts {found.interior.hits} are inside, "
        "where the prediction of the next token is overwritten. Where a whole form of the forget prompts is left out "
        f"of the fit, {found.left_out.mean:.1%} of it are blocked on average{least}. By "
        f"their words alone, without the model, {found.words.hits} of {found.words.total} plain prompts of the report "
        "part would be blocked within the same "
        "budgets."
    )


def any_skill_line(found: StoredRate) -> str:
    """What several skills block together. found: the summary's `blocked_by_any`."""
    text = "What is promised holds for each skill by itself. "
    if found.rate is None:
        return text + "Over all skills nothing was counted: there are no prompts that no skill claims."
    return text + (
        f"Over all skills: of {counted(found.total, 'harmless prompt')} of the report parts that no skill claims "
        f"{found.hits} are blocked by any of them at the last token ({100 * found.rate:.1f} %; 95 % interval "
        f"{100 * found.low:.1f} - {100 * found.high:.1f} %)."
    )


def refitted_promise(found: Mapping[str, Any], quantized: Mapping[str, Any]) -> str:
    """What one skill's regions promise on a quantized graph. quantized: self_check.json; found: the skill's key space
    there."""
    regions = found["discriminant"]
    return promise(
        found["layer"],
        AlphaSummary.model_validate(found["alpha"]),
        found["fault"],
        f"this {quantized['quantize']} graph",
        None if regions is None else DiscriminantSummary.model_validate(regions),
        neurons=quantized["neurons_changed"] > 0,
    )


def warning_lines(summary: Summary) -> list[str]:
    """The export's warnings, a sentence each, which names its skill where there are several."""
    several = len(summary.skills) > 1
    return [f"{each.skill}: {each.message}" if several and each.skill else each.message for each in summary.warnings]


def neurons_line(found: NeuronSummary, method: str) -> str:
    """What was done to one skill's neurons, and how it changes the perplexity of texts of the report part."""
    name = "Selective Pruning" if method == "sp" else "Neuron Adjust"
    text = f"{name} of {counted(found.neurons, 'neuron')}: the top {found.beta:g} % by {found.score}. "
    if not found.within_budget:
        text += (
            "NOT WITHIN BUDGET: no tried share of neurons raises the forget loss and keeps the rise of the retain "
            f"loss within --max-retain-loss {found.max_retain_loss}. "
        )
    ratios = [f"{name} x{each.perplexity_ratio:.3f}" for name, each in found.texts.items()]
    return text + f"Perplexity of held-out texts against the base model: {', '.join(ratios)}."


RATES = (
    ("forget set", "blocked"),
    ("forget set, unseen formats", "blocked_in_unseen_formats"),
    ("false blocks", "false_blocks"),
    ("false blocks over answers", "false_blocks_over_answers"),
)
"""What is counted on the report part, in words and by its field of `MeasuredRates`."""


def rate_rows(found: MeasuredRates) -> list[dict[str, Any]]:
    """Everything that was counted on the report part, with exact 95 % intervals."""
    rates = [
        (what, source, name, rate)
        for what, key in RATES
        for source, formats in getattr(found, key).items()
        for name, rate in formats.items()
    ]
    rates += [("known limit", "forget set", name, rate) for name, rate in found.limits.items()]
    return [{"what": what, "source": source, "format": name} | rate.model_dump() for what, source, name, rate in rates]


def refitted_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same of a quantized graph. found: one skill's key space in self_check.json, without answers where these were
    not looked at."""
    return rate_rows(MeasuredRates.model_validate({key: value for key, value in found.items() if value is not None}))
