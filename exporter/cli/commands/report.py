"""The command `unskill report`; like all of them it imports nothing heavy before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from exporter.cli.options import as_json, shared
from exporter.cli.output import echo_json, messages
from exporter.common.files import beside


@click.command("report", short_help="A checkpoint's figures as one page, and as PNGs.")
@click.argument("checkpoint")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report; default CHECKPOINT-report.")
@click.option("--forget", multiple=True, metavar="SOURCE", help="A source of the export again: its prompts are shown.")
@click.option("--retain", multiple=True, metavar="SOURCE", help="Likewise.")
@click.option(
    "--base", metavar="MODEL", help="What it was made of: answers before and after, Gaussian check of neurons."
)
@shared("device", "overwrite", "quiet")
@as_json
def report_command(checkpoint: str, out: Path | None, as_json: bool, **flags: Any) -> None:
    """Write report.html, report.json and figures/*.png of CHECKPOINT (folder or Hub id), by the numbers that it holds.

    The page needs no network. Prompts are in it only where their sources are given again, answers only where the base
    model is given too.

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
