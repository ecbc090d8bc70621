"""The command `unskill cache`. It never imports torch."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import as_json
from exporter.cli.output import echo_json
from exporter.common.cache import FOLDER, MOST_BYTES, cache_folder, cached_files, make_room
from exporter.common.errors import BadInput, RunFailed
from exporter.common.text import counted


@click.group("cache", short_help="What exports keep, so that the next one need not compute it.")
def cache_command() -> None:
    """What exports keep: what the base computes for each batch of prompts.

    An export that was stopped goes on with it, and one of the same prompts with other budgets takes a minute. What was
    used longest ago is removed where it grows beyond 8 GiB. The environment variable UNSKILL_CACHE names another
    folder; empty, or with unskill export --no-cache, nothing is kept.
    """


@cache_command.command("ls", short_help="The folder and its size.")
@as_json
def list_command(as_json: bool) -> None:
    """Show where the cache is, how many files it has, and their size."""
    folder = existing()
    files = cached_files(folder)
    size = sum(state.st_size for _, state in files)
    if as_json:
        echo_json({"folder": str(folder), "files": len(files), "bytes": size, "most_bytes": MOST_BYTES})
    else:
        click.echo(f"{folder}: {counted(len(files), 'file')}, {megabytes(size)} of at most {megabytes(MOST_BYTES)}")


@cache_command.command("rm", short_help="Remove all that is kept.")
def remove_command() -> None:
    """Remove all that exports have kept. One that runs computes what it misses anew."""
    folder = existing()
    try:
        freed = make_room(folder, 0)
    except OSError as error:
        raise RunFailed(f"{error.filename}: {error.strerror}") from error
    click.echo(f"{folder}: {megabytes(freed)} removed")


def existing() -> Path:
    folder = cache_folder()
    if folder is None:
        raise BadInput(f"{FOLDER}: is empty, so nothing is kept; unset it, or name a folder")
    return folder


def megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
