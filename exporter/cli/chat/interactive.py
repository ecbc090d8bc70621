"""The chat in a terminal: prompts and commands as they are typed."""

from __future__ import annotations

import sys
from contextlib import suppress

import click

from exporter.cli.chat.conversation import Conversation
from exporter.cli.chat.screen import Screen
from exporter.common.errors import BadInput, UnskillError

PROMPT = "> "
HELP = """\
/reset          begin anew; the system prompt stays
/system TEXT    system prompt from now on; /system alone takes it away
/why on|off     say after each answer why it was blocked or not
/help           this list
/exit           leave, as Ctrl-D; Ctrl-C stops an answer
A prompt that begins with / is typed with a space before it."""


def interact(conversation: Conversation, screen: Screen) -> None:
    """Prompts and commands until the user leaves. Raises KeyboardInterrupt on Ctrl-C at the prompt."""
    with suppress(ImportError):  # a Python built without it has no line editing, nothing else
        import readline  # noqa: F401  # gives input() line editing and history
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
    """The next line. Raises EOFError where there is none."""
    if sys.stdout.isatty():
        return input(PROMPT)
    click.echo(PROMPT, err=True, nl=False)  # input() would write it among the answers
    return input()


def obey(line: str, conversation: Conversation, screen: Screen) -> bool:
    """Do what a command says; False where that is to leave. Raises BadInput for what is no command."""
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command == "/exit":
        return False
    if command == "/help":
        screen.say(HELP)
    elif command == "/reset":
        conversation.reset()
        screen.say("The conversation begins anew.")
    elif command == "/system":
        conversation.system = rest or None
        screen.say("From now on with this system prompt." if rest else "From now on without a system prompt.")
    elif command == "/why" and rest in ("on", "off"):
        screen.why = rest == "on"
        screen.say(f"Reasons are {rest}.")
    elif command == "/why":
        raise BadInput("/why: on or off")
    else:
        raise BadInput(f"{command}: no such command; /help lists them")
    return True
