"""The command `unskill cache`. It never imports torch."""

from __future__ import annotations

import click

from exporter.cli.options import as_json
from exporter.cli.output import echo_json
from exporter.common.cache import FOLDER, MOST_BYTES, cache_folder, cached_files, make_room
from exporter.common.errors import BadInput, RunFailed
from exporter.common.text import counted


@click.command("cache", short_help="What exports keep, so that the next one need not compute it.")
@click.argument("what", type=click.Choice(["ls", "rm"]), default="ls")
@as_json
def cache_command(what: str, as_json: bool) -> None:
    """Show, or by rm remove, what exports keep: what the base computes for each batch of prompts.

    An export that was stopped goes on with it, and one of the same prompts with other budgets computes little. What
    was used longest ago is removed where it grows beyond 8 GiB. The environment variable UNSKILL_CACHE names another
    folder; where it is empty, or with unskill export --no-cache, nothing is kept.

    \b
    unskill cache ls
    unskill cache rm
    """
    folder = cache_folder()
    if folder is None:
        raise BadInput(f"{FOLDER}: is empty, so nothing is kept; unset it, or name a folder")
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{FOLDER}: {folder} is no folder; name another, or leave it unset")
    files = cached_files(folder)
    size = sum(state.st_size for _, state in files)
    if what == "rm":
        try:
            make_room(folder, 0)
        except OSError as error:
            raise RunFailed(f"{error.filename}: {error.strerror}") from error
    if as_json:
        echo_json({"folder": str(folder), "files": len(files), "bytes": size, "removed": what == "rm"})
        return
    said = "removed" if what == "rm" else f"of at most {megabytes(MOST_BYTES)}"
    click.echo(f"{folder}: {counted(len(files), 'file')}, {megabytes(size)} {said}")


def megabytes(size: int) -> str:
    """As 1,200 MiB."""
    return f"{size / 2**20:,.0f} MiB"
