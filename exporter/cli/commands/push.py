"""The command `unskill push`. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from exporter.cli.options import as_json, shared
from exporter.cli.output import echo_json, messages
from exporter.common.files import human_size
from exporter.common.text import printable

SNIPPET = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}", revision="{commit}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{repo}", revision="{commit}", trust_remote_code=True)"""


@click.command("push", short_help="Push a checkpoint to the Hub, in one commit.")
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("repo", metavar="USER/NAME")
@click.option("--public", is_flag=True, help="Make the repo, new or existing, public after the commit.")
@click.option("--revision", metavar="BRANCH", help="Commit to this branch, created from main if missing.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing to main.")
@click.option("--message", metavar="TEXT", help="Commit message.")
@click.option("--dry-run", is_flag=True, help="List what would be pushed; needs no token and no network.")
@shared("quiet")
@as_json
def push_command(as_json: bool, **flags: Any) -> None:
    """Push the checkpoint OUT to the Hub repo USER/NAME, in one commit, and print how to load that commit.

    A new repo is private; --public makes it public after the commit, so that nobody sees half a checkpoint. An
    existing repo keeps its visibility, and files that OUT does not have are removed in the same commit. A checkpoint
    that unskill verify --without-model rejects is not pushed.

    The token is HF_TOKEN, or that of `hf auth login`. If a push fails, the same command resumes it: complete uploads
    are not repeated.

    \b
    unskill push OUT USER/NAME
    """
    from exporter.checkpoint.push.push import PushSettings, push
    from exporter.verification.whole import check_whole

    settings = PushSettings(**flags)
    done = push(settings, check_whole, messages(settings.quiet))
    if as_json:
        echo_json(done)
    else:
        show_push(done)


def show_push(done: dict[str, Any]) -> None:
    """Print what a push did or would do."""
    total = f"{len(done['files'])} files, {human_size(done['bytes'])}"
    if done["dry_run"]:
        for each in done["files"]:
            click.echo(f"{each['size']:>14,}  {printable(each['path'])}")
        click.echo(f"Would push {total} to {done['repo']}, branch {printable(done['revision'])}")
        return
    where = f"{printable(done['url'])} ({'private' if done['private'] else 'public'})"
    if done["pull_request"]:
        click.echo(f"Opened {printable(done['pull_request'])}: {total}")
    elif done["changed"]:
        click.echo(f"Pushed {total} to {where}")
    else:
        click.echo(f"Already up to date: {total} in {where}")
    if done["deleted"]:
        click.echo(f"Removed from the repo: {', '.join(map(printable, done['deleted']))}")
    click.echo(f"\n{SNIPPET.format(repo=done['repo'], commit=printable(done['commit']))}")
