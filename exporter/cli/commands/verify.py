"""The command `unskill verify`. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from exporter.cli.options import as_json, shared
from exporter.cli.output import echo_json, messages


@click.command("verify", short_help="Check that a checkpoint is complete and works.")
@click.argument("checkpoint")
@click.option("--forget", multiple=True, metavar="SOURCE", help="A --forget source of the export, to ask its prompts.")
@click.option("--attack", is_flag=True, help="Ask for its packaged skills in every kind of turn; takes minutes.")
@click.option(
    "--onnx",
    type=click.Path(path_type=Path, file_okay=False),
    help="Its ONNX folder; default CHECKPOINT-onnx, if it exists.",
)
@click.option(
    "--without-model", "model", flag_value=False, default=True, help="Files only: load no weights, run no code."
)
@click.option(
    "--trust-code",
    is_flag=True,
    help="Pass and run code that cannot be compared: another version of unskill wrote it.",
)
@shared("device", "quiet")
@as_json
@click.pass_context
def verify_command(context: click.Context, /, as_json: bool, quiet: bool, **flags: Any) -> None:
    """Check CHECKPOINT (folder or Hub id): files, code, weights, tokenizer, what it answers and what it refuses.

    Exit 0 if no check failed, 1 if one did. A check that could not be made says why and counts as neither. The code of
    the checkpoint is run only if no check of its files failed and it is what this unskill writes. Code of another
    version cannot be compared, so the check fails, unless --trust-code is given. --without-model runs none.

    --attack asks up to 60 held-out prompts of each packaged skill in every kind of turn, near misses and everyday
    prompts, and prints how many are refused. It fails if fewer are than is promised, or if a prompt is decided
    otherwise than at the export.

    \b
    unskill verify OUT --forget maths.jsonl,column=question
    """
    from exporter.cli.tables.verify import show
    from exporter.verification.run import VerifySettings, verify

    found = verify(VerifySettings(**flags), messages(quiet))
    if as_json:
        echo_json(found)
    else:
        show(found)
    context.exit(0 if found["ok"] else 1)
