"""A conversation with a checkpoint and, in parallel, with its base: both get the user's turns and see own answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from exporter.cli.chat.answers import Answer, Sampling, answer
from exporter.cli.chat.settings import check_text
from exporter.common.errors import BadInput
from exporter.evaluation.records import BASE, EDITED
from exporter.evaluation.why import Detector
from exporter.models.loading import LoadedModel
from exporter.models.tokens import context_of
from exporter.prompts.formats import SECOND_TURN, SYSTEM, Formatter, Message


@dataclass
class Side:
    """One model in a conversation, and its messages so far. detectors, suppressed: see `answer`."""

    loaded: LoadedModel
    formatter: Formatter
    detectors: Sequence[Detector] | None = None
    suppressed: int | None = None
    messages: list[Message] = field(default_factory=list)

    @property
    def role(self) -> str:
        return EDITED if self.loaded.settings else BASE


@dataclass(frozen=True)
class Turn:
    """A prompt and the answers to it. base: None without a base to compare with."""

    prompt: str
    edited: Answer
    base: Answer | None

    @property
    def same(self) -> bool | None:
        return None if self.base is None else self.base.text == self.edited.text


class Conversation:
    """sides: the checkpoint and, to compare with, its base.

    keep: whether a turn continues those before it, which also needs a chat template. stoppable: see `answer`.
    """

    def __init__(self, sides: Sequence[Side], sampling: Sampling, *, keep: bool, stoppable: bool = False) -> None:
        self.sides, self._sampling, self._stoppable = sides, sampling, stoppable
        self.remembers = keep and all(SECOND_TURN in side.formatter.formats_used for side in sides)
        self._system: str | None = None
        self._turns = 0

    @property
    def system(self) -> str | None:
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        """Raises BadInput if a model takes no system prompt."""
        if text is not None:
            check_text(text, "system prompt")
            for side in self.sides:
                if SYSTEM not in side.formatter.formats_used:
                    raise BadInput(f"system prompt (--system): the prompt format of {side.loaded.name} has none")
        self._system = text

    def reset(self) -> None:
        """Forget all turns; keep the system prompt."""
        for side in self.sides:
            side.messages.clear()

    def ask(self, prompt: str, write: Callable[[str, str], None]) -> Turn:
        """The next turn; write(role, piece) gets every piece of the answers, one after the other, and an empty piece
        as one begins.

        Raises BadInput if the prompt is empty, is not UTF-8, has no tokens or leaves no room for an answer; the
        conversation stays as it was. RunFailed: see `answer`.
        """
        check_text(prompt, "prompt")
        ids = [self._ids(side, prompt) for side in self.sides]
        answers: dict[str, Answer] = {}
        for side, each in zip(self.sides, ids, strict=True):
            write(side.role, "")
            most, context = self._sampling.max_new_tokens, context_of(side.loaded.model)
            most = most if context is None else min(most, context - len(each))
            seed = self._sampling.seed + self._turns  # the same for all sides
            sampling = replace(self._sampling, max_new_tokens=most, seed=seed)
            answers[side.role] = answer(
                side.loaded,
                each,
                sampling,
                partial(write, side.role),
                detectors=side.detectors,
                suppressed=side.suppressed,
                stoppable=self._stoppable,
            )
        self._turns += 1
        if self.remembers:
            for side in self.sides:
                said = answers[side.role].text
                side.messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": said}]
        return Turn(prompt, answers[EDITED], answers.get(BASE))

    def _ids(self, side: Side, prompt: str) -> tuple[int, ...]:
        ids = side.formatter.render(prompt, system=self._system, history=side.messages)
        context = context_of(side.loaded.model)
        if not ids:
            raise BadInput(f"the prompt has no tokens for {side.loaded.name}")
        if context is not None and len(ids) >= context:
            raise BadInput(
                f"the conversation has {len(ids)} tokens, {side.loaded.name} a context of {context}: "
                + ("shorten the prompt, or begin anew" if side.messages else "shorten the prompt")
            )
        return ids
