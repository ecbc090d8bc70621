"""The command `unskill restore`. Heavy imports wait until it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from exporter.cli.options import OUT, as_json, shared
from exporter.cli.output import echo_json, messages
from exporter.common.files import human_size
from exporter.common.text import printable


@click.command("restore", short_help="Restore the base model's files from a checkpoint.")
@click.argument("checkpoint")
@click.argument("folder", metavar="DIR", type=OUT)
@shared("overwrite", "quiet")
@as_json
def restore_command(checkpoint: str, folder: Path, as_json: bool, **flags: Any) -> None:
    """Write to DIR the files of the base model of CHECKPOINT (folder or Hub id), byte for byte.

    Each is compared with the sha256 that the export recorded; if one differs, nothing is written. Weights in other
    formats, folders and files that do not belong to a model are not kept by an export, and are listed.

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
    files: Mapping[str, Any] = found["files"]
    blanked = [name for name, each in files.items() if each["without_local_paths"]]
    unknown = [name for name, each in files.items() if not each["compared"]]
    revision = f" at {found['revision']}" if found["revision"] else ""
    what = f"{len(files)} files of {found['model']}{revision}, {human_size(found['size'])}"
    yield f"Wrote {folder}: {what}: {', '.join(files)}"
    if len(unknown) < len(files):
        yield f"Compared: the sha256 of {'all others' if unknown else 'every file'} is what the export recorded"
    if unknown:
        yield f"Not compared, the export recorded no sha256 (--no-fingerprints): {', '.join(unknown)}"
    if blanked:
        yield f"Without local paths, which no export keeps: {', '.join(blanked)}"
    if found["left_out"]:
        names = (f"{each['name']} ({each['why']})" for each in found["left_out"])
        yield f"Left out at the export: {', '.join(names)}"
    if found["revision"]:
        yield "Files on the Hub that an export does not download, such as weights in other formats, are not included"
