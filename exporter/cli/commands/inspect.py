"""The command `unskill inspect`. It never imports torch, to be fast."""

from __future__ import annotations

import click

from exporter.cli.options import as_json
from exporter.cli.output import echo_json


@click.command("inspect", short_help="What a checkpoint records about itself.")
@click.argument("checkpoint")
@as_json
def inspect_command(checkpoint: str, as_json: bool) -> None:
    """Print what CHECKPOINT (folder or Hub id, or a folder of unskill onnx) records about itself: its skills and what
    was done to them, measurements, base model, versions, sizes.

    Nothing is loaded or compared: use unskill verify for that.

    \b
    unskill inspect OUT
    """
    from exporter.checkpoint.inspect import inspect, written_by_unskill

    found = inspect(checkpoint)
    if as_json:
        echo_json(found)
        return
    from exporter.cli.tables.console import console
    from exporter.cli.tables.inspect import parts

    with written_by_unskill(found["checkpoint"]):
        shown = list(parts(found))
    console(100).print(*shown, sep="\n")
