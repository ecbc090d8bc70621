"""Output of the chat: answers as they are generated, why they were blocked or not, both models side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from exporter.cli.chat.answers import INTERRUPTED, LENGTH, Answer
from exporter.cli.chat.conversation import Conversation, Turn
from exporter.common.text import literal
from exporter.evaluation.records import BASE, EDITED
from exporter.evaluation.why import Moved, Verdict
from exporter.recipes.settings import HYPERCUBE

# Below this width two columns are harder to read than one answer below the other.
SIDE_BY_SIDE = 80

HOW = {"ksd": "refused", "na": "neurons adjusted", "sp": "neurons pruned"}

Write = Callable[[str, str], None]


class Screen:
    """Answers and reasons on stdout, everything else on stderr.

    names: of the models, by role; why: whether to print reasons; answers_alone: print nothing but answers.
    """

    def __init__(self, names: Mapping[str, str], *, why: bool = True, answers_alone: bool = False) -> None:
        self.names = {role: literal(name) for role, name in names.items()}
        self.why, self.answers_alone = why, answers_alone
        self.console = Console(width=None if sys.stdout.isatty() else 120, markup=False, highlight=False, emoji=False)

    def turn(self, conversation: Conversation, prompt: str) -> Turn:
        """Ask, and show the answers as they are generated, then the reasons."""
        side_by_side = len(self.names) > 1 and sys.stdout.isatty() and self.console.width >= SIDE_BY_SIDE
        with self._columns() if side_by_side else self._lines() as write:
            turn = conversation.ask(prompt, write)
        if turn.same and not self.answers_alone:
            self.line("Both answers are identical.", "bold")
        self._ends(turn)
        if self.why:
            for line, style in reasons(turn.edited):
                self.line(f"  {line}", style)
        return turn

    def asked(self, prompt: str, first: bool) -> None:
        """Show a prompt that was not typed here."""
        self.line(f"{'' if first else chr(10)}> {literal(prompt)}", "bold")

    def line(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=True)

    def say(self, text: str) -> None:
        """Answer a command."""
        click.echo(text, err=True)

    def notify(self, text: str) -> None:
        if not self.answers_alone:
            click.echo(literal(text), err=True)

    def error(self, text: str) -> None:
        click.echo(f"error: {literal(text)}", err=True)

    def _ends(self, turn: Turn) -> None:
        endings = {INTERRUPTED: "stopped", LENGTH: "cut off (--max-new-tokens, or the model's context)"}
        for role, each in ((EDITED, turn.edited), (BASE, turn.base)):
            if each is not None and each.ended in endings:
                whose = f"{self.names[role]}: " if len(self.names) > 1 else ""
                self.notify(f"  {whose}{endings[each.ended]} after {tokens(each.tokens)}")

    @contextmanager
    def _lines(self) -> Iterator[Write]:
        """Answers one below the other; with several models, under their names."""
        written: dict[str, bool] = {}  # by role, whether there was any text

        def end() -> None:
            if written:
                said = list(written.values())[-1]
                click.echo("" if said or self.answers_alone else "(empty answer)")

        def write(role: str, piece: str) -> None:
            if role not in written:
                end()
                if len(self.names) > 1:
                    self.line(f"{self.names[role]}:", "bold")
            written[role] = written.get(role, False) or bool(piece)
            click.echo(literal(piece), nl=False)

        try:
            yield write
        finally:
            end()

    @contextmanager
    def _columns(self) -> Iterator[Write]:
        """Answers side by side."""
        written = dict.fromkeys(self.names, "")

        def table() -> Table:
            drawn = Table(expand=True)
            for name in self.names.values():
                drawn.add_column(Text(name), ratio=1, overflow="fold")
            drawn.add_row(*(Text(literal(text)) for text in written.values()))
            return drawn

        live = Live(console=self.console, refresh_per_second=8)

        def write(role: str, piece: str) -> None:
            written[role] += piece
            live.update(table())
            live.start()  # only now, so that a prompt that cannot be asked draws no table

        try:
            yield write
        finally:
            live.stop()


def about(name: str, skills: Sequence[Mapping[str, Any]]) -> str:
    """What a checkpoint does, from the skills in its config.json."""
    lines = [f"{name}:"]
    for skill in skills:
        does = [HOW.get(part, part) for part in skill["method"].split("+")]
        if "layer" in skill:
            limit = "alpha" if skill.get("region", HYPERCUBE) == HYPERCUBE else "threshold"
            does[-1] += f" (layer {skill['layer']}, {limit} {skill['alpha']['value']:.2f})"
        lines.append(f"  {skill['name']}: {', '.join(does)}")
    return "\n".join([*lines, "Type a prompt; /help lists the commands, Ctrl-D exits."])


def reasons(answer: Answer) -> list[tuple[str, str]]:
    """Lines that explain an answer, each with its style."""
    lines = [(verdict_line(each), "yellow" if each.blocked_after is not None else "dim") for each in answer.verdicts]
    return lines + ([] if answer.moved is None else [(moved_line(answer.moved), "dim")])


def verdict_line(verdict: Verdict) -> str:
    """As "maths: 3.91 <= alpha 4.20 at layer 20: blocked"."""
    name = literal(verdict.skill)
    if verdict.score is None:
        return f"{name}: not scored"
    at_prompt = verdict.blocked_after == 0
    said = f"{name}: {compared(verdict.score, verdict.alpha, at_prompt, f'{verdict.limit} ')} at layer {verdict.layer}"
    if at_prompt:
        return f"{said}: blocked"
    if verdict.blocked_after is None or verdict.blocked_score is None:
        return f"{said}: not blocked"
    later, where = compared(verdict.blocked_score, verdict.alpha, True), tokens(verdict.blocked_after)
    return f"{said}: not blocked at the prompt; {later} after {where} of the answer: blocked there"


def compared(score: float, alpha: float, inside: bool, what: str = "") -> str:
    """Two numbers with enough decimals to tell them apart."""
    digits = next((n for n in range(2, 9) if f"{score:.{n}f}" != f"{alpha:.{n}f}"), 2)
    return f"{score:.{digits}f} {'<=' if inside else '>'} {what}{alpha:.{digits}f}"


def moved_line(moved: Moved) -> str:
    said = f"Neuron Adjust: {moved.ever} of {moved.selected} neurons were moved over the answer"
    if moved.positions == 1:
        return said
    return f"{said}; at each of the {moved.positions} tokens {moved.moves / moved.positions:.1f} on average"


def tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"
