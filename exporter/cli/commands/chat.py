"""The command `unskill chat`; like all of them it imports nothing heavy before it runs."""

from __future__ import annotations

from typing import Any

import click

from exporter.cli.chat.settings import ChatSettings
from exporter.cli.options import options_of, recorded_template


@click.command("chat", short_help="Talk with a checkpoint, and see why it refuses.")
@click.argument("checkpoint")
@options_of(ChatSettings)
@recorded_template
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
