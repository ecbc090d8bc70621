"""What `unskill inspect` prints. Names come from others: control characters and markup in them have no effect."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from exporter.checkpoint.sentences import promise, refitted_promise
from exporter.checkpoint.summary import AlphaSummary, DiscriminantSummary
from exporter.cli.tables.console import rate_cells
from exporter.common.files import human_size
from exporter.common.text import printable
from exporter.recipes.settings import HYPERCUBE

MADE_WITH = ("unskill", "torch", "transformers")
COUNTED = {"cubes": "hypercubes", "regions": "regions", "adjusted": "adjusted", "pruned": "pruned"}
"""Interventions by their key in config.json, and what they are called here."""
ALARMS = ("FORCED", "MISSING", "NOT WITHIN BUDGET")


def parts(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """What to print, from top to bottom."""
    head = "ONNX folder of a checkpoint" if found["kind"] == "onnx" else "checkpoint"
    yield plain(f"{found['checkpoint']}: {head}, unskill {found['unskill']}, format {found['format']}", "bold")
    yield pairs(overview(found))
    for skill in found["skills"]:
        yield ""
        yield plain(f"skill {skill['name']}: {skill['method']}", "bold")
        yield pairs(skill_facts(found, skill))
        yield from (table for table in skill_tables(skill) if table.row_count)
    for line in found["warnings"] or ():
        yield plain(f"warning: {line}", "yellow")


def overview(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What applies to all skills: name and value of each line."""
    base, refusal, neurons = found["base"], found["refusal"], found["neurons"]
    revision = f", revision {base['revision']}" if base["revision"] else ""
    yield "base", f"{base['name'] or 'not recorded'} ({base['family']}){revision}"
    compat = f", compat {found['compat']}" if found["compat"] else ""
    yield "fitted in", f"{found['dtype']}, seed {found['seed']}, draws {found['draws']}{compat}"
    if found["forced"]:
        yield "FORCED", "written with --force although requested limits were exceeded"
    if refusal:
        row = "a row more than the base" if refusal["added_row"] else "in a padding row of the base"
        yield "refusal", f'"{refusal["text"]}"'
        yield "tokens", f"R {refusal['token_id']}, {row}; after it EOS {refusal['eos_token_id']}"
        closed = "refuses too" if refusal["base_model"] == "closed" else "raises"
        yield "AutoModel", f"{closed}, for engines with a head of their own"
    if neurons["changed"]:
        yield "neurons", f"{neurons['changed']} of {neurons['of']} changed ({neurons['share']:.3%})"
    for kind, what in COUNTED.items():
        counts = {layer: each[kind] for layer, each in found["layers"].items() if each.get(kind)}
        if counts:
            yield what, f"in layer {', '.join(f'{layer} ({count})' for layer, count in counts.items())}"
    yield from files(found)


def files(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The files, on disk or on the Hub."""
    sizes, graph, beside = found["sizes"], found["graph"], found["onnx"]
    if sizes:
        parts = [f"weights {human_size(sizes['weights'])}"]
        if sizes["interventions"] is not None:
            parts.append(f"of them interventions {human_size(sizes['interventions'])}")
        if sizes["reproduce"]:
            parts.append(f"reproduce/ {human_size(sizes['reproduce'])}")
        yield "size", f"{human_size(sizes['total'])} in {sizes['files']} files: {', '.join(parts)}"
    else:
        yield "size", "not known: the Hub cannot be reached"
    if found["missing"]:
        yield "MISSING", ", ".join(found["missing"])
    if found["versions"]:
        yield "made with", ", ".join(f"{name} {found['versions'][name]}" for name in MADE_WITH)
    if graph:
        agrees = "agreed" if graph["agrees"] else "DID NOT AGREE"
        yield "graph", f"{graph.get('quantize') or graph['dtype']} of {graph['checkpoint']}; its self-check {agrees}"
    elif not found["reproduce"]:
        yield (
            "reproduce/",
            "none: loaded and saved again, which dropped sources, losses, versions and most rates",
        )
    elif not found["base_kept"]:
        yield "base files", "not kept: unskill restore cannot restore the base"
    else:
        yield "base files", "kept: unskill restore restores the base"
    if beside:
        state = {True: "", False: ", of another export than this one", None: ", refitted"}[beside["same"]]
        yield "ONNX", beside["fault"] or f"{beside['name']} beside it, {beside['numbers']}{state}"


def skill_facts(found: Mapping[str, Any], skill: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    neurons, key_space = skill["neurons"], skill["key_space"]
    if neurons:
        count = "" if neurons["layers"] is None else f", {neurons['neurons']} (layers: {len(neurons['layers'])})"
        yield "neurons", f"the top {neurons['beta']:g} % by {neurons['score']}{count}"
        if not neurons["within_budget"]:
            limit = "" if neurons["max_retain_loss"] is None else f" {neurons['max_retain_loss']}"
            yield (
                "NOT WITHIN BUDGET",
                f"no tried share of neurons raises the forget loss within --max-retain-loss{limit}",
            )
    if key_space:
        fault = None if key_space["separates"] else key_space["fault"] or "it exceeds the limits of the export"
        alpha = AlphaSummary.model_validate(key_space["alpha"])
        regions = key_space["discriminant"] and DiscriminantSummary.model_validate(key_space["discriminant"])
        flags = {source["flag"] for source in skill["sources"] or ()}
        graph = found["graph"] or {}
        refitted = next((each for each in graph.get("skills", ()) if each["name"] == skill["name"]), None)
        if refitted is not None:
            said = refitted_promise(refitted["key_space"], graph)
        elif key_space["region"] == HYPERCUBE or regions is not None:
            said = promise(
                key_space["layer"], alpha, fault, found["dtype"], regions, flags, found["neurons"]["changed"] > 0
            )
        else:  # its summary is not here: saved again without reproduce/, or in an ONNX folder
            said = f"layer {key_space['layer']}, threshold {alpha.value:.3f}" + (
                f"; NOT SEPARATED: {fault}" if fault else ""
            )
        yield f"{key_space['region']}s", said
        yield "formats" if key_space["region"] == HYPERCUBE else "places", ", ".join(key_space["formats"])
    for source in skill["sources"] or ():
        options = "".join(f",{key}={value}" for key, value in source["options"].items())
        what = f"{source['label']}{options}: {source['prompts']} prompts"
        yield source["flag"].removeprefix("--"), f"{what}, sha256 {source['fingerprint'][:12]}"


def skill_tables(skill: Mapping[str, Any]) -> Iterator[Table]:
    if skill["key_space"]:
        yield rate_table(skill["key_space"])
    if skill["neurons"] and skill["neurons"]["texts"]:
        yield loss_table(skill["neurons"]["texts"])


def rate_table(key_space: Mapping[str, Any]) -> Table:
    table = figures("held-out prompts", "source", "blocked", "of", "95 % interval")
    for row in key_space["rates"]:
        if row["format"] != "all" and row["what"] != "known limit":
            continue
        source = f"after: {row['format']}" if row["what"] == "known limit" else row["source"]
        table.add_row(plain(row["what"]), plain(source), *rate_cells(row))
    return table


def loss_table(texts: Mapping[str, Mapping[str, Any]]) -> Table:
    table = figures("held-out texts", "tokens", "base loss", "rise", "upper end", "perplexity")
    for name, each in texts.items():
        losses = (f"{each['base_loss']:.3f}", f"{each['rise']:+.4f}", f"{each['upper']:+.4f}")
        table.add_row(plain(name), str(each["tokens"]), *losses, f"x{math.exp(each['rise']):.3f}")
    return table


def figures(first: str, *others: str) -> Table:
    """A table with names in the first column and in one of sources, and numbers in the others."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="left" if name == "source" else "right")
    return table


def pairs(lines: Iterator[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=12)
    table.add_column(overflow="fold")
    for name, value in lines:
        table.add_row(plain(f"  {name}", "red" if name in ALARMS else "cyan"), plain(value))
    return table


def plain(text: str, style: str = "") -> Text:
    """Text without markup, with control characters escaped."""
    return Text(printable(text), style)
