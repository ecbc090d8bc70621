"""The command `unskill chat`; like all of them it imports nothing heavy before it runs."""

from __future__ import annotations

from typing import Any

import click

from exporter.cli.chat.settings import ChatSettings
from exporter.cli.options import recorded_template
from exporter.recipes.settings import DTYPES


@click.command("chat", short_help="Talk with a checkpoint, and see why it refuses.")
@click.argument("checkpoint")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Answer this and leave. Repeatable.")
@click.option("--conversation", is_flag=True, help="Each --prompt, or line on stdin, follows on those before it.")
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option(
    "--compare",
    is_flag=True,
    help="Answer with the base model too: the same weights without interventions, not loaded again.",
)
@click.option("--base", metavar="MODEL", help="Compare with this model instead.")
@recorded_template
@click.option("--max-new-tokens", type=int, default=256, show_default=True, help="Greatest length of an answer.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="Of sampling; 0 is greedy.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of sampling.")
@click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="Of the model.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout; needs prompts.")
@click.option("--quiet", is_flag=True, help="Answers alone: no reasons and remarks.")
def chat_command(**flags: Any) -> None:
    """Chat with CHECKPOINT (folder or Hub id) in the terminal, with the modeling code that it brings along.

    After each answer it says why: for every skill the score of the prompt's last token against alpha, within which it
    is refused, and how many neurons were moved. /help lists the commands.

    Without a terminal prompts are read from stdin, one a line. These, and several --prompt, are independent unless
    --conversation is given. With --compare both models get the same turns of yours and each its own answers.

    \b
    unskill chat OUT
    unskill chat OUT --compare --prompt "Tom has 3 apples and buys 4 more. How many has he now?"
    """
    settings = ChatSettings(**flags)

    from exporter.cli.chat.run import chat

    chat(settings)
