"""The chat in a terminal: prompts and commands from the keyboard."""

from __future__ import annotations

import sys
from contextlib import suppress

import click

from exporter.cli.chat.conversation import Conversation
from exporter.cli.chat.screen import Screen
from exporter.common.errors import BadInput, UnskillError

PROMPT = "> "
HELP = """\
/reset          start a new conversation; the system prompt stays
/system TEXT    set the system prompt; /system alone removes it
/why on|off     say after each answer why it was blocked or not
/help           show this list
/exit           exit, as Ctrl-D; Ctrl-C stops an answer
Type a space before a prompt that begins with /."""


def interact(conversation: Conversation, screen: Screen) -> None:
    """Answer prompts and commands until the user exits. Raises KeyboardInterrupt on Ctrl-C at the prompt."""
    with suppress(ImportError):  # without readline, input() works but has no line editing
        import readline  # noqa: F401  # for line editing and history in input()
    while True:
        try:
            line = read()
        except EOFError:
            screen.say("")
            return
        except UnicodeDecodeError:
            screen.error("that is not UTF-8 text")
            continue
        try:
            if line.startswith("/"):
                if not obey(line, conversation, screen):
                    return
            elif line.strip():
                screen.turn(conversation, line.strip())
        except UnskillError as error:
            screen.error(str(error))
        except KeyboardInterrupt:  # between two answers, or before the first
            screen.say("Stopped; this turn is forgotten.")


def read() -> str:
    """The next line. Raises EOFError at the end of the input."""
    if sys.stdout.isatty():
        return input(PROMPT)
    click.echo(PROMPT, err=True, nl=False)  # input() would print it on stdout, among the answers
    return input()


def obey(line: str, conversation: Conversation, screen: Screen) -> bool:
    """Run a command; False if it is /exit. Raises BadInput for an unknown one."""
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command == "/exit":
        return False
    if command == "/help":
        screen.say(HELP)
    elif command == "/reset":
        conversation.reset()
        screen.say("The conversation starts again.")
    elif command == "/system":
        conversation.system = rest or None
        screen.say("System prompt set." if rest else "System prompt removed.")
    elif command == "/why" and rest in ("on", "off"):
        screen.why = rest == "on"
        screen.say(f"Reasons are {rest}.")
    elif command == "/why":
        raise BadInput("/why: on or off")
    else:
        raise BadInput(f"{command}: no such command; /help lists them")
    return True
