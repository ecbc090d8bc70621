"""The command `unskill restore`; like all of them it imports nothing heavy before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from exporter.cli.options import as_json, shared
from exporter.cli.output import echo_json, messages
from exporter.common.text import printable


@click.command("restore", short_help="The base model's files out of a checkpoint.")
@click.argument("checkpoint")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@shared("overwrite", "quiet")
@as_json
def restore_command(checkpoint: str, folder: Path, as_json: bool, **flags: Any) -> None:
    """Write to DIR the files of the model that CHECKPOINT (folder or Hub id) was made of, byte for byte.

    Each is compared with the sha256 that the export recorded; where one differs nothing is written. Weights in other
    formats, folders and files that are no part of a model are not kept by an export: they are named.

    \b
    unskill restore OUT SmolLM2-restored
    """
    from exporter.checkpoint.base.restore import RestoreSettings, restore

    settings = RestoreSettings(checkpoint, folder, **flags)
    found = restore(settings, messages(settings.quiet))
    if as_json:
        echo_json(found | {"out": str(folder)})
        return
    for line in lines(found, folder):
        click.echo(printable(line))


def lines(found: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """What was restored and what was not, a sentence each."""
    from exporter.common.files import human_size

    files: Mapping[str, Any] = found["files"]
    blanked = [name for name, each in files.items() if each["without_local_paths"]]
    unknown = [name for name, each in files.items() if not each["compared"]]
    revision = f" at {found['revision']}" if found["revision"] else ""
    size = human_size(found["size"])
    yield f"Wrote {folder}: {len(files)} files of {found['model']}{revision}, {size}: {', '.join(files)}"
    if len(unknown) < len(files):
        yield f"Compared: the sha256 of {'all others' if unknown else 'every file'} is what the export recorded"
    if unknown:
        yield f"Not compared, the export recorded no sha256 (--no-fingerprints): {', '.join(unknown)}"
    if blanked:
        yield f"Without paths of somebody's disk, which no export keeps: {', '.join(blanked)}"
    if found["left_out"]:
        names = (f"{each['name']} ({each['why']})" for each in found["left_out"])
        yield f"Left out at the export: {', '.join(names)}"
    if found["revision"]:
        yield "Files on the Hub that an export does not download, weights in other formats, are not among them"
