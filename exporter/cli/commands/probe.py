"""The command `unskill probe`. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from exporter.cli.commands.export import settings_of
from exporter.cli.options import OUT, as_json, options_of, recipe, shared
from exporter.cli.output import echo_json, messages
from exporter.recipes.settings import SkillSettings


@click.command("probe", short_help="Measure neuron statistics, for export --statistics.")
@click.argument("model", required=False)
@click.argument("out", required=False, type=OUT)
@options_of(SkillSettings, ("forget", "retain", "packaged", "everyday", "everyday_without"))
@recipe
@shared("revision", "skip_long", "seed", "dtype", "device", "batch_size", "threads", "overwrite", "quiet")
@as_json
@click.pass_context
def probe_command(
    context: click.Context, /, recipe: Path | None, data: tuple[Path, ...], as_json: bool, **flags: Any
) -> None:
    """Write the statistics file OUT of MODEL: mean and deviation of every neuron over forget and retain texts.

    It probes the texts that an export with the same sources and seed would probe, and no held-out ones. An interrupted
    probe resumes when started again.

    \b
    unskill probe MODEL maths.safetensors --forget maths.jsonl,column=question,answer=answer --retain code.jsonl
    unskill export MODEL LESS --method na --statistics maths.safetensors \\
        --forget maths.jsonl,column=question,answer=answer --retain code.jsonl
    """
    from exporter.pipeline.probe import probe

    settings, recorded = settings_of(context, recipe, data, flags, {} if recipe else {"method": "na"})
    found = probe(settings, messages(settings.quiet), recorded) | {"out": str(settings.out)}
    if as_json:
        echo_json(found)
        return
    for name, sides in found["skills"].items():
        for side, each in sides.items():
            click.echo(f"{name}, {side}: {each['texts']} texts, {each['tokens']} tokens")
    click.echo(f"Wrote {settings.out}: unskill export ... --statistics {settings.out}")
