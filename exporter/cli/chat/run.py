"""`unskill chat`, from its settings to the last answer."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from exporter.cli.chat.answers import Answer, Sampling
from exporter.cli.chat.conversation import Conversation, Side, Turn
from exporter.cli.chat.interactive import interact
from exporter.cli.chat.screen import Screen, about
from exporter.cli.chat.settings import ChatSettings, check_text
from exporter.cli.output import echo_json
from exporter.common.errors import BadInput
from exporter.evaluation.records import BASE
from exporter.evaluation.why import detectors_of
from exporter.models.files import find_base
from exporter.models.library import silent_library
from exporter.models.loading import LoadedModel, load_checkpoint, load_files, plain_base
from exporter.prompts.formats import Formatter
from exporter.recipes.templates import given_template


@silent_library()
def chat(settings: ChatSettings) -> None:
    """Run the chat; with as_json, print the turns at the end, even if a later prompt cannot be asked.

    Raises BadInput for a checkpoint, base or prompt that cannot be used, RunFailed if memory runs out.
    """
    interactive = not settings.prompts and sys.stdin.isatty()
    if interactive and settings.as_json:
        raise BadInput("--json: needs prompts, by --prompt TEXT or one per line on stdin")
    if isinstance(sys.stdout, io.TextIOWrapper):  # the terminal's encoding may lack a character of an answer
        sys.stdout.reconfigure(errors="backslashreplace")
    edited = load_checkpoint(settings.checkpoint, settings.dtype, settings.device)
    sides = [Side(edited, formatter_of(edited, edited, settings), detectors_of(edited))]
    if settings.base is not None:
        base = load_files(find_base(settings.base), settings.dtype, settings.device)
        sides.append(Side(base, formatter_of(base, edited, settings)))
    elif settings.compare:
        base = plain_base(edited)
        sides.append(Side(base, formatter_of(base, edited, settings), suppressed=padding_refusal(edited)))
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.seed)
    conversation = Conversation(sides, sampling, keep=interactive or settings.conversation, stoppable=interactive)
    conversation.system = settings.system
    names = {side.role: side.loaded.name for side in sides}
    screen = Screen(names, why=not settings.quiet, answers_alone=settings.quiet)
    fitted, dtype = edited.settings["dtype"], str(edited.model.dtype).removeprefix("torch.")
    if dtype != fitted:
        screen.notify(f"Fitted in {fitted} and loaded in {dtype}: a few decisions may differ from those on the card.")
    if not edited.tokenizer.chat_template:
        for text in sides[0].formatter.notes:
            screen.notify(text)
    if (interactive or settings.conversation) and not conversation.remembers:
        screen.notify("The prompt format has no earlier turns: each prompt stands alone.")
    if interactive:
        screen.notify(about(edited.name, edited.settings["skills"]))
        interact(conversation, screen)
        return
    turns: list[Turn] = []
    try:
        for prompt in settings.prompts or piped():
            if settings.as_json:
                turns.append(conversation.ask(prompt, lambda role, piece: None))
                continue
            if not settings.quiet:
                screen.asked(prompt, first=not turns)
            turns.append(screen.turn(conversation, prompt))
    finally:
        if settings.as_json and turns:
            record = {
                "checkpoint": edited.name,
                "base": names.get(BASE),
                "system": settings.system,
                "conversation": conversation.remembers,
                "max_new_tokens": settings.max_new_tokens,
                "temperature": settings.temperature,
                "seed": settings.seed,
                "dtype": dtype,
                "turns": [turn_record(turn) for turn in turns],
            }
            echo_json(record)
    if not turns:
        raise BadInput("no prompt: give --prompt TEXT, or one per line on stdin")


def formatter_of(loaded: LoadedModel, edited: LoadedModel, settings: ChatSettings) -> Formatter:
    """The prompt format for a model: that of --prompt-template, else that of the export; in the state asked for."""
    given = given_template(settings.prompt_template)
    return loaded.formatter(edited.template if given is None else given, max_length=None, state=settings.state)


def padding_refusal(edited: LoadedModel) -> int | None:
    """R if it is a padding row of the base, which the checkpoint's weights fill; else None."""
    return None if edited.settings["added_row"] else edited.refusal_id


def piped() -> Iterator[str]:
    """Prompts from stdin, one per line. Raises BadInput for bytes that are not UTF-8."""
    try:
        for number, line in enumerate(sys.stdin, start=1):
            if line.strip():
                check_text(line, f"stdin: line {number}")
                yield line.strip()
    except UnicodeDecodeError as error:
        raise BadInput("stdin: is not UTF-8 text") from error


def turn_record(turn: Turn) -> dict[str, Any]:
    """One turn in --json."""
    edited, base = turn.edited, turn.base
    skills = [
        {
            "name": each.skill,
            "layer": each.layer,
            "score": each.score,
            "alpha": each.alpha,
            "blocked": each.blocked_after is not None,
            "blocked_after": each.blocked_after,
            "blocked_score": each.blocked_score,
        }
        for each in edited.verdicts
    ]
    return {
        "prompt": turn.prompt,
        **answer_record(edited),
        "blocked": edited.blocked_after is not None,
        "blocked_after": edited.blocked_after,
        "skills": skills,
        "neurons": None if edited.moved is None else asdict(edited.moved),
        "base": None if base is None else answer_record(base) | {"same": turn.same},
    }


def answer_record(answer: Answer) -> dict[str, Any]:
    return {"answer": answer.text, "tokens": answer.tokens, "ended": answer.ended}
