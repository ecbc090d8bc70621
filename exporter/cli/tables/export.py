"""The summary of an export for the terminal: what was chosen, the rates, and the tables behind the choice."""

from __future__ import annotations

import math

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from exporter.checkpoint.sentences import any_skill_line, neurons_line, promise, rate_rows, warning_lines
from exporter.checkpoint.summary import DiscriminantSummary, KeySpaceSummary, NeuronSummary, SharedLayer, Summary
from exporter.checkpoint.verdict import verdict
from exporter.cli.tables.console import rate_cells, titled
from exporter.prompts.packaged import EVERYDAY


def print_summary(summary: Summary, console: Console, tables: bool) -> None:
    """The verdict, and the warnings; with `tables`, all that is behind it."""
    if tables:
        print_tables(summary, console)
    for skill in summary.skills:
        for line in verdict(skill):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if summary.blocked_by_any is not None:
        console.print(any_skill_line(summary.blocked_by_any), highlight=False, soft_wrap=True)
    for line in warning_lines(summary):
        console.print(f"warning: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_tables(summary: Summary, console: Console) -> None:
    several = len(summary.skills) > 1
    for skill in summary.skills:
        if several:
            console.rule(escape(f"skill {skill.name}"), align="left")
        if skill.neurons is not None:
            console.print(neurons_line(skill.neurons, skill.method), highlight=False)
            console.print(trial_table(skill.neurons))
            console.print(text_table(skill.neurons))
        if (found := skill.key_space) is not None:
            about = found.layer, found.alpha, found.fault, summary.dtype, found.discriminant, skill.flags
            console.print(promise(*about, summary.neurons_changed > 0), highlight=False)
            console.print(rate_table(found))
            if found.discriminant is None:
                console.print(layer_table(found))
            else:
                console.print(form_table(found.discriminant))
                console.print(trial_layers(found.discriminant))
    if several and any(skill.key_space for skill in summary.skills):
        console.print(cross_table(summary))
    if summary.shared_neurons:
        console.print(shared_table(summary))
    if summary.base_model_class is not None:
        what = "refuses too" if summary.base_model_class.closed else "raises: no refusal state was found for it"
        console.print(f"AutoModel (engines with their own head) {what}.", highlight=False)
    console.rule()


def trial_table(found: NeuronSummary) -> Table:
    table = titled(
        "Score and beta: tried on held-out texts (the choose parts)",
        ("score",),
        ("beta", "forget rise", "perplexity", "retain rise", "everyday rise", "upper end", "within budget"),
        "rises of the mean token loss in nats; within budget: upper end of the 90 % intervals over texts "
        f"at most --max-retain-loss {found.max_retain_loss}",
    )
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
    title = "Texts of the report parts, with all neurons changed"
    table = titled(title, ("texts",), ("of", "tokens", "base perplexity", "changed", "ratio", "upper end"))
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
    title = "Report parts: prompts that nothing was fitted or chosen on"
    around = found.discriminant.phrases if found.discriminant is not None else {}
    note = "intervals: by prompts, or by what stands around them where that is wider; there are "
    note += ", ".join(f"{count} ({format_})" for format_, count in around.items())
    table = titled(title, ("what", "source", "format"), ("blocked", "of", "95 % interval"), note if around else None)
    for row in rate_rows(found):
        table.add_row(row["what"], escape(row["source"]), row["format"], *rate_cells(row))
    return table


def cross_table(summary: Summary) -> Table:
    """Which skill blocks which skill's prompts, and everyday prompts except the kinds that belong to it."""
    blocking = [(skill.name, skill.key_space) for skill in summary.skills if skill.key_space is not None]
    title = "Which skill blocks what, report parts, last token of the prompt"
    table = titled(title, ("prompts",), [escape(f"by {name}") for name, _ in blocking])
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
    table = titled(
        "Neurons that two skills both change",
        ("skills",),
        ("layer", "shared", "of", "share"),
        "share: of the smaller of both sets; a shared neuron is moved by the skill that parts its texts more, "
        "and is zero where one prunes it",
    )
    for each in summary.shared_neurons:
        whose = escape(" and ".join(each.skills))
        rows: dict[str, SharedLayer] = {**each.layers, "all": each}
        for layer, row in rows.items():
            table.add_row(whose, layer, str(row.shared), str(row.smaller), f"{row.share:.1%}")
    return table


def form_table(found: DiscriminantSummary) -> Table:
    """Forget prompts and near misses of the report part by form, over all kinds of turn."""
    table = titled(
        "Forms of the prompts: report part, all kinds of turn",
        ("form",),
        ("blocked", "of", "95 % interval", "left out", "near misses", "of", "95 % interval"),
        "left out: share blocked where nothing was fitted on this form (plain and other messages, fit part)",
    )
    nothing = {"hits": 0, "total": 0, "low": 0.0, "high": 1.0, "rate": None}
    for form in sorted({*found.forms, *found.near_miss_forms}):
        own, near = (
            dict(rates[form]["all"]) if form in rates else nothing for rates in (found.forms, found.near_miss_forms)
        )
        left_out = found.left_out.blocked.get(form)
        share = "-" if left_out is None else f"{left_out:.1%}"
        table.add_row(escape(form), *rate_cells(own), share, *rate_cells(near))
    return table


def trial_layers(found: DiscriminantSummary) -> Table:
    table = titled(
        "Layers: chosen inside the fit part, every form scored by directions fitted without it",
        (),
        ("layer", "blocked, mean over forms", "least", "area under the curve"),
    )
    for trial in found.trials:
        table.add_row(
            f"{trial.layer}{' *' if trial.layer == found.left_out.layer else ''}",
            f"{trial.mean:.1%}",
            f"{min(trial.blocked.values()):.1%}",
            f"{trial.area:.3f}",
        )
    return table


def layer_table(found: KeySpaceSummary) -> Table:
    chosen_on, shown = ("layer", "false blocks", "unseen formats", "margin"), ("alpha", "forget blocked", "everyday")
    table = titled(
        "Layers: chosen on the choose parts (left), shown on the report parts (right)",
        (),
        (*chosen_on, *shown, "retain", "over answers"),
        "unseen formats: false blocks in any format, at the alpha to be expected under system prompts and "
        "after exchanges that were left out of the fit",
    )
    for row in found.layers:
        table.add_row(
            f"{row.layer}{' *' if row.layer == found.layer else ''}",
            f"{row.choose_false_blocks_over_answers}/{row.choose_harmless}",
            str(row.choose_unseen_false_blocks),
            f"{row.margin:.2f}",
            f"{row.alpha:.2f}",
            *(rate_cells(dict(rate))[0] for rate in (row.blocked, row.everyday, row.retain, row.over_answers)),
        )
    return table
