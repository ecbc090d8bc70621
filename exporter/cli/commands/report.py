"""The command `unskill report`. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from exporter.cli.options import OUT, as_json, shared
from exporter.cli.output import echo_json, messages
from exporter.common.files import beside


@click.command("report", short_help="A checkpoint's figures as one page, and as PNGs.")
@click.argument("checkpoint")
@click.option("--out", type=OUT, help="Folder of the report; default CHECKPOINT-report.")
@click.option("--forget", multiple=True, metavar="SOURCE", help="A source of the export, to show its prompts.")
@click.option("--retain", multiple=True, metavar="SOURCE", help="Likewise.")
@click.option(
    "--base", metavar="MODEL", help="Its base, for answers before and after and a Gaussian check of neurons."
)
@shared("device", "overwrite", "quiet")
@as_json
def report_command(checkpoint: str, out: Path | None, as_json: bool, **flags: Any) -> None:
    """Write report.html, report.json and figures/*.png of CHECKPOINT (folder or Hub id), from its recorded numbers.

    The page needs no network. It has prompts only if their sources are given, and answers only if the base model is
    given too.

    \b
    unskill report OUT --forget maths.jsonl,column=question
    """
    from exporter.reporting.run import ReportSettings, report

    settings = ReportSettings(checkpoint, out or beside(checkpoint, "-report"), **flags)
    numbers = report(settings, messages(settings.quiet))
    if as_json:
        echo_json(numbers)
        return
    click.echo(f"Wrote {settings.out}: open {settings.out / 'report.html'}")
