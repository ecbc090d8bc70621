"""The command `unskill chat`. Heavy imports wait until it runs."""

from __future__ import annotations

from typing import Any

import click

from exporter.cli.chat.settings import ChatSettings
from exporter.cli.options import options_of


@click.command("chat", short_help="Talk with a checkpoint, and see why it refuses.")
@click.argument("checkpoint")
@options_of(ChatSettings)
def chat_command(**flags: Any) -> None:
    """Chat with CHECKPOINT (folder or Hub id) in the terminal, running its own modeling code.

    Each answer is followed by the reasons: for every skill, the score of the prompt's last token against alpha, or
    the threshold of half-spaces (a score up to it is refused), and how many neurons were moved. /help lists the
    commands.

    Without a terminal, prompts are read from stdin, one per line. These, and several --prompt, are independent unless
    --conversation is given. With --compare both models get your turns, and each sees its own answers.

    \b
    unskill chat OUT
    unskill chat OUT --compare --prompt "Tom has 3 apples and buys 4 more. How many has he now?"
    """
    settings = ChatSettings(**flags)

    from exporter.cli.chat.run import chat

    chat(settings)
