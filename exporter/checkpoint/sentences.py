"""The summary of an export: one JSON object with everything that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a summary is read without any of these
    from exporter.methods.neurons.trade_off import Trial


def trial_line(trial: Trial) -> str:
    """One trial of Neuron Adjust or pruning, as it is remarked while the next one runs."""
    everyday = "" if trial.everyday_rise is None else f", everyday {trial.everyday_rise:+.4f}"
    return (
        f"{trial.score} {trial.beta:g} %: loss of forget texts {trial.forget_rise:+.4f}, retain "
        f"{trial.retain_rise:+.4f}{everyday} (upper end {trial.upper:+.4f}) nats per token"
    )


def promise(summary: Mapping[str, Any], skill: Mapping[str, Any]) -> str:
    """What may be said of one skill's hypercubes."""
    found = skill["key_space"]
    alpha = found["alpha"]
    text = f"Key Space Detection at layer {found['layer']}, alpha {alpha['value']:.3f}. "
    if not found["separates"]:
        text += f"NOT SEPARATED: {found['fault']}. "
    if alpha["promise"] is None:
        return text + "Alpha was given, so nothing is promised about further prompts."
    return text + (
        f"With {alpha['confidence']:.0%} confidence in the draw of the {alpha['calibrated_on']} calibration prompts, "
        f"at least {alpha['promise']:.1%} of further prompts from the same source and formats are blocked "
        f"({summary['dtype']}). No promise for other wordings."
    )


def warning_lines(summary: Mapping[str, Any]) -> list[str]:
    """What the export warns of, a sentence each, with the skill that it is about where there are several."""
    several = len(summary["skills"]) > 1
    # Early checkpoints have no warnings in their summary.
    found = summary.get("warnings", [])
    return [f"{each['skill']}: {each['message']}" if several and each["skill"] else each["message"] for each in found]


def neurons_line(skill: Mapping[str, Any]) -> str:
    """What was done to one skill's neurons, and what that does to texts of the report part."""
    found = skill["neurons"]
    name = "Selective Pruning" if skill["method"] == "sp" else "Neuron Adjust"
    text = f"{name} of {found['neurons']} neurons: the top {found['beta']:g} % by {found['score']}. "
    if not found["borne"]:
        limit = f"--max-retain-loss {found['max_retain_loss']}"
        text += f"NOT WITHIN BUDGET: retain or everyday texts lose more than {limit}. "
    ratios = [f"{name} x{each['perplexity_ratio']:.3f}" for name, each in found["texts"].items()]
    return text + f"Perplexity of held-out texts against the base model: {', '.join(ratios)}."


RATES = (
    ("forget set", "blocked"),
    ("forget set, unseen formats", "blocked_in_unseen_formats"),
    ("false blocks", "false_blocks"),
    ("false blocks over answers", "false_blocks_over_answers"),
)
"""What is counted on the report part, in words and by its key in the summary."""


def rate_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Everything that was counted on the report part, with exact 95 % intervals."""
    rows: list[dict[str, Any]] = []
    for what, key in RATES:
        for source, formats in found[key].items():
            rows += [{"what": what, "source": source, "format": name} | rate for name, rate in formats.items()]
    rows += [
        {"what": "known limit", "source": "forget set", "format": name} | rate
        for name, rate in found["limits"].items()
    ]
    return rows
