"""The summary for a person: what was decided, the rates, and the tables it was decided from."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from exporter.checkpoint.sentences import RATES, neurons_line, promise, warning_lines
from exporter.checkpoint.summary import KeySpaceSummary, NeuronSummary, SharedLayer, StoredRate, Summary
from exporter.prompts.packaged import EVERYDAY


def print_summary(summary: Summary, console: Console) -> None:
    several = len(summary.skills) > 1
    for skill in summary.skills:
        if several:
            console.rule(escape(f"skill {skill.name}"), align="left")
        if skill.neurons is not None:
            console.print(neurons_line(skill.neurons, skill.method), highlight=False)
            console.print(trial_table(skill.neurons))
            console.print(text_table(skill.neurons))
        if (found := skill.key_space) is not None:
            console.print(promise(found.layer, found.alpha, found.fault, summary.dtype), highlight=False)
            console.print(rate_table(found))
            console.print(layer_table(found))
    if several and any(skill.key_space for skill in summary.skills):
        console.print(cross_table(summary))
    if summary.shared_neurons:
        console.print(shared_table(summary))
    if summary.base_model_class is not None:
        what = "refuses too" if summary.base_model_class.closed else "raises: no refusal state was found for it"
        console.print(f"AutoModel (engines with their own head) {what}.", highlight=False)
    for line in warning_lines(summary):
        console.print(f"warning: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def trial_table(found: NeuronSummary) -> Table:
    table = Table(
        title="Score and beta: tried on held-out texts (the choose parts)",
        title_justify="left",
        caption=f"rises of the mean token loss in nats; within budget: upper end of the 90 % intervals over texts "
        f"at most --max-retain-loss {found.max_retain_loss}",
        caption_justify="left",
    )
    table.add_column("score")
    for name in ("beta", "forget rise", "perplexity", "retain rise", "everyday rise", "upper end", "within budget"):
        table.add_column(name, justify="right")
    for trial in found.trials:
        chosen = (trial.score, trial.beta) == (found.score, found.beta)
        table.add_row(
            f"{trial.score}{' *' if chosen else ''}",
            f"{trial.beta:g} %",
            f"{trial.forget_rise:+.4f}",
            f"x{math.exp(trial.forget_rise):.3f}",
            f"{trial.retain_rise:+.4f}",
            "-" if trial.everyday_rise is None else f"{trial.everyday_rise:+.4f}",
            f"{trial.upper:+.4f}",
            "yes" if trial.upper <= found.max_retain_loss else "no",
        )
    return table


def text_table(found: NeuronSummary) -> Table:
    table = Table(title="Texts of the report parts, with all neurons changed", title_justify="left")
    table.add_column("texts")
    for name in ("of", "tokens", "base perplexity", "changed", "ratio", "upper end"):
        table.add_column(name, justify="right")
    for name, each in found.texts.items():
        table.add_row(
            name,
            str(each.texts),
            str(each.tokens),
            f"{math.exp(each.base_loss):.3f}",
            f"{math.exp(each.base_loss + each.rise):.3f}",
            f"x{each.perplexity_ratio:.4f}",
            f"x{math.exp(each.upper):.4f}",
        )
    return table


def rate_table(found: KeySpaceSummary) -> Table:
    table = Table(title="Report parts: prompts that nothing was fitted or chosen on", title_justify="left")
    for name in ("what", "source", "format", "blocked", "of", "95 % interval"):
        table.add_column(name, justify="left" if name in ("what", "source", "format") else "right")
    for what, key in RATES:
        for source, formats in getattr(found, key).items():
            for name, rate in formats.items():
                table.add_row(what, escape(source), name, *cells(rate))
    for name, rate in found.limits.items():
        table.add_row("known limit", "forget set", name, *cells(rate))
    return table


def cross_table(summary: Summary) -> Table:
    """Which skill's hypercubes hold which prompts: of every skill, and everyday prompts less the skill's own kinds."""
    blocking = [(skill.name, skill.key_space) for skill in summary.skills if skill.key_space is not None]
    table = Table(title="Which skill blocks what, report parts, last token of the prompt", title_justify="left")
    table.add_column("prompts")
    for name, _ in blocking:
        table.add_column(escape(f"by {name}"), justify="right")
    for row in summary.skills:
        source = f"skill {row.name}"
        hits = (own_cell(found) if name == row.name else other_cell(found, source) for name, found in blocking)
        table.add_row(escape(source), *hits)
    table.add_row(EVERYDAY, *(other_cell(found, EVERYDAY) for _, found in blocking))
    return table


def own_cell(found: KeySpaceSummary) -> str:
    """Hits of a skill's hypercubes on its own prompts, from all sources."""
    parts = [formats["all"] for formats in found.blocked.values()]
    return f"{sum(each.hits for each in parts)}/{sum(each.total for each in parts)}"


def other_cell(found: KeySpaceSummary, source: str) -> str:
    """Hits of a skill's hypercubes on the prompts of another source."""
    formats = found.false_blocks.get(source)
    return f"{formats['all'].hits}/{formats['all'].total}" if formats else "-"


def shared_table(summary: Summary) -> Table:
    """Neurons that two skills both change, by layer."""
    table = Table(
        title="Neurons that two skills both change",
        title_justify="left",
        caption="share: of the smaller of both sets; a shared neuron is moved by the skill that parts its texts more, "
        "and is zero where one prunes it",
        caption_justify="left",
    )
    table.add_column("skills")
    for name in ("layer", "shared", "of", "share"):
        table.add_column(name, justify="right")
    for each in summary.shared_neurons:
        whose = escape(" and ".join(each.skills))
        rows: dict[str, SharedLayer] = {**each.layers, "all": each}
        for layer, row in rows.items():
            table.add_row(whose, layer, str(row.shared), str(row.smaller), f"{row.share:.1%}")
    return table


def cells(each: StoredRate) -> Iterable[str]:
    if each.rate is None:
        return ("-", "0", "-")
    return (f"{each.rate:.1%}", str(each.total), f"{each.low:.1%} - {each.high:.1%}")


def layer_table(found: KeySpaceSummary) -> Table:
    table = Table(
        title="Layers: chosen on the choose parts (left), shown on the report parts (right)",
        title_justify="left",
        caption="unseen formats: false blocks in any format, at the alpha to be expected under system prompts and "
        "after exchanges that were left out of the fit",
        caption_justify="left",
    )
    for name in (
        "layer",
        "false blocks",
        "unseen formats",
        "margin",
        "alpha",
        "forget blocked",
        "everyday",
        "retain",
        "over answers",
    ):
        table.add_column(name, justify="right")
    for row in found.layers:
        table.add_row(
            f"{row.layer}{' *' if row.layer == found.layer else ''}",
            f"{row.choose_false_blocks_over_answers}/{row.choose_harmless}",
            str(row.choose_unseen_false_blocks),
            f"{row.margin:.2f}",
            f"{row.alpha:.2f}",
            *(next(iter(cells(rate))) for rate in (row.blocked, row.everyday, row.retain, row.over_answers)),
        )
    return table
