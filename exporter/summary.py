"""The summary of an export: one JSON object, and its tables for a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from exporter import __version__
from exporter.calibration import Rate
from exporter.evidence import Decision, Evidence
from exporter.formats import Formatter
from exporter.model import LoadedModel
from exporter.refusal_states import RefusalStates
from exporter.settings import ExportSettings


def summarise(
    settings: ExportSettings,
    loaded: LoadedModel,
    sources: Sequence[Any],
    formatter: Formatter,
    evidence: Evidence,
    decision: Decision,
    limits: Mapping[str, Rate],
    states: RefusalStates,
) -> dict[str, Any]:
    """Everything measured, as a JSON object without paths or prompt texts.

    Rates are objects of hits, total, rate, and low and high of the exact 95 % interval; all but `layers[].choose_*`
    come from the report parts. `false_blocks` is about the prompt's last token, `false_blocks_over_answers` about
    every position from there on through the base's own greedy answer. `blocked_in_unseen_formats` is about hypercubes
    that were fitted without the system prompt or exchange of the prompt in question.
    """
    forget, retain = evidence.forget_parts, evidence.retain_parts
    return {
        "unskill": __version__,
        "model": loaded.base.name,
        "revision": loaded.base.revision,
        "method": settings.method,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "seed": settings.seed,
        "formats": list(formatter.formats_used),
        "sources": [asdict(source) for source in sources],
        "parts": {
            "forget": {name: len(part) for name, part in asdict_parts(forget).items()},
            "retain": {name: len(part) for name, part in asdict_parts(retain).items()},
        },
        "hypercubes": list(evidence.keys.formats),
        "layer": decision.layer,
        "alpha": asdict(decision.alpha),
        "separates": decision.separates,
        "max_false_block": settings.max_false_block,
        "target_block_rate": settings.target_block_rate,
        "blocked": rates(decision.blocked),
        "blocked_in_unseen_formats": rates(decision.blocked_unseen),
        "false_blocks": rates(decision.false_blocks),
        "false_blocks_over_answers": rates(decision.false_answers),
        "everyday_kinds_over_answers": rates(decision.kinds),
        "limits": rates(limits),
        "base_model_class": {"closed": states.closed, **states.measured},
        "layers": [
            {
                "layer": row.choice.layer,
                "choose_alpha": row.choice.alpha,
                "choose_false_blocks_over_answers": row.choice.false_blocks,
                "choose_harmless": row.choice.harmless,
                "choose_unseen_alpha": row.choice.unseen_alpha,
                "choose_unseen_false_blocks": row.choice.unseen_false_blocks,
                "margin": row.choice.margin,
                "alpha": row.alpha,
                "blocked": rates(row.blocked),
                "everyday": rates(row.everyday_prompts),
                "retain": rates(row.retain_prompts),
                "over_answers": rates(row.answers),
            }
            for row in decision.table
        ],
    }


def asdict_parts(parts: Any) -> dict[str, Sequence[Any]]:
    """The fields of a parts dataclass, without copying what is in them."""
    return {name: getattr(parts, name) for name in parts.__dataclass_fields__}


def rates(value: Any) -> Any:
    """The same nesting with every Rate as a JSON object."""
    if isinstance(value, Rate):
        return {**asdict(value), "rate": value.rate if value.total else None}
    return {name: rates(inner) for name, inner in value.items()}


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """The summary for a person: the decision, the rates, the per-layer table."""
    console.print(promise(summary), highlight=False)
    table = Table(title="Report parts: prompts that nothing was fitted or chosen on", title_justify="left")
    for name in ("what", "source", "format", "blocked", "of", "95 % interval"):
        table.add_column(name, justify="left" if name in ("what", "source", "format") else "right")
    for title, key in (
        ("forget set", "blocked"),
        ("the same, unseen formats", "blocked_in_unseen_formats"),
        ("false blocks", "false_blocks"),
        ("false blocks over answers", "false_blocks_over_answers"),
    ):
        for source, formats in summary[key].items():
            for name, each in formats.items():
                table.add_row(title, source, name, *cells(each))
    for name, each in summary["limits"].items():
        table.add_row("known limit", "forget set", name, *cells(each))
    console.print(table)
    console.print(layer_table(summary))
    closed = "refuses too" if summary["base_model_class"]["closed"] else "raises: no refusal state was found for it"
    console.print(f"AutoModel (engines with their own head) {closed}.", highlight=False)


def promise(summary: Mapping[str, Any]) -> str:
    alpha = summary["alpha"]
    text = f"Key Space Detection at layer {summary['layer']}, alpha {alpha['value']:.3f}. "
    if not summary["separates"]:
        text += f"NOT SEPARATED: false blocks are above --max-false-block {summary['max_false_block']}. "
    if alpha["promise"] is None:
        return text + "Alpha was given, so nothing is promised about further prompts."
    return text + (
        f"With {alpha['confidence']:.0%} confidence in the draw of the {alpha['calibrated_on']} calibration prompts, "
        f"at least {alpha['promise']:.1%} of further prompts from the same source and formats are blocked "
        f"({summary['dtype']}). No promise for other wordings."
    )


def cells(each: Mapping[str, Any]) -> Iterable[str]:
    if not each["total"]:
        return ("-", "0", "-")
    return (f"{each['rate']:.1%}", str(each["total"]), f"{each['low']:.1%} - {each['high']:.1%}")


def layer_table(summary: Mapping[str, Any]) -> Table:
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
    for row in summary["layers"]:
        table.add_row(
            f"{row['layer']}{' *' if row['layer'] == summary['layer'] else ''}",
            f"{row['choose_false_blocks_over_answers']}/{row['choose_harmless']}",
            str(row["choose_unseen_false_blocks"]),
            f"{row['margin']:.2f}",
            f"{row['alpha']:.2f}",
            *(next(iter(cells(row[name]))) for name in ("blocked", "everyday", "retain", "over_answers")),
        )
    return table
