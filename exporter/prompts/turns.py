"""Kinds of turn: where in a conversation a prompt is put, and which position of it is looked at.

The skill is asked for in a first message, under a system prompt, later in a conversation, inside a long message, by
beginning the answer, or by insisting after a refusal. Every kind but the plain one draws what surrounds the prompt
from packaged texts, of which each part of the prompts has its own: nothing is reported on a phrase, system prompt or
conversation that something was fitted on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from exporter.prompts import packaged
from exporter.prompts.formats import PLAIN, SECOND_TURN, SYSTEM, Formatter, Message, Query
from exporter.prompts.sources import Prompt
from exporter.prompts.switches import State

PROMPT, BEGUN, REFUSED = "prompt", "begun answer", "after a refusal"
PLACES = (PROMPT, BEGUN, REFUSED)
"""The end of a message, of the beginning of an answer, and of a message after a refusal."""
DEEP, BURIED, PREFILL, INSISTING = "deep", "buried", "prefill", "insisting"
RENDERED = "rendered"
"""The format of renderings, which are plain messages and yet no prompts of their own."""
REQUEST = "{request}"
"""Where a packaged text quotes the prompt."""
AFTER_REFUSAL, AFTER_ANSWER = "harmless after a refusal", "insisting after an answer"
"""Sources of packaged messages that are to be answered."""

FITTED_AFTER = 2
"""How many refused prompts each packaged message of the fit part follows."""

FIT, REPORT = "fit", "report"
DEAL = (FIT, FIT, REPORT, FIT, FIT, FIT, REPORT, FIT, FIT, REPORT)
"""The parts in turn: 70 % to fit and set the threshold, 30 % to report. So is dealt what surrounds prompts."""
PLAIN_SHARES = 0.35, 0.7, 1.0
"""Share that plain messages may take of a part's forget prompts, prompts to be answered, and messages after a refusal.
Every other kind of turn needs hundreds to fit on; the bound on false blocks needs many different prompts."""


@dataclass(frozen=True)
class Around:
    """What surrounds a prompt: the user's message that holds it, what stands before and after that, and the state of
    the chat template."""

    message: str = REQUEST
    system: str | None = None
    history: tuple[Message, ...] = ()
    begun: str = ""
    state: State | None = None

    def render(self, formatter: Formatter, prompt: str) -> tuple[int, ...]:
        """Token ids of a prompt in these surroundings."""

        def filled(text: str) -> str:
            return text.replace(REQUEST, prompt)

        history = [{**each, "content": filled(each["content"])} for each in self.history]
        return formatter.render(
            filled(self.message),
            system=self.system,
            history=history,
            assistant_prefill=filled(self.begun),
            state=self.state,
        )


@dataclass(frozen=True)
class Turn:
    """A kind of turn. around: all that may surround a prompt, given what the user said; needs: the format that the
    chat template has to be able to express."""

    name: str
    place: str
    needs: str
    around: Callable[[Said], Sequence[Around]]


@dataclass(frozen=True)
class Said:
    """What the user gave: the refusal, and system prompts beside the packaged ones."""

    refusal: str
    system_prompts: tuple[str, ...] = ()


def insisting(said: Said) -> list[Around]:
    before = {"role": "user", "content": REQUEST}, {"role": "assistant", "content": said.refusal}
    return [Around(each.text, history=before) for each in packaged.insisting()]


def under_system_prompts(said: Said) -> list[Around]:
    texts = dict.fromkeys((*said.system_prompts, *packaged.all_system_prompts()))
    return [Around(system=text) for text in texts]


TURNS = (
    Turn(PLAIN, PROMPT, PLAIN, lambda said: [Around()]),
    Turn(SYSTEM, PROMPT, SYSTEM, under_system_prompts),
    Turn(
        SECOND_TURN,
        PROMPT,
        SECOND_TURN,
        lambda said: [Around(history=tuple(each.messages())) for each in packaged.all_exchanges()],
    ),
    Turn(
        DEEP,
        PROMPT,
        SECOND_TURN,
        lambda said: [Around(history=tuple(each.messages)) for each in packaged.conversations()],
    ),
    Turn(BURIED, PROMPT, PLAIN, lambda said: [Around(each.text) for each in packaged.long_messages()]),
    Turn(PREFILL, BEGUN, PLAIN, lambda said: [Around(begun=each.text) for each in packaged.prefills()]),
    Turn(INSISTING, REFUSED, SECOND_TURN, insisting),
)
"""Every way in which a skill is asked for, in the chat template's default state."""


def in_state(state: State) -> Turn:
    """The kind of turn of a plain message in another state of the chat template."""
    return Turn(state.text, PROMPT, state.text, lambda said: [Around(state=state)])


class Turns:
    """Puts prompts into the kinds of turn that a model's chat template can express.

    seed: of the draws, which depend on it and on the prompt alone; max_length: see `Formatter`; longer queries are
    left out and counted in `skipped`. plain: the kinds that are a plain message, in each state of the chat template.
    """

    def __init__(self, formatter: Formatter, said: Said, seed: int, max_length: int | None) -> None:
        self._formatter, self._refusal, self._seed, self._max_length = formatter, said.refusal, seed, max_length
        used = formatter.formats_used
        mixed = used != (PLAIN,)
        self._states = (None, *formatter.states.values())
        self.plain = (PLAIN, *formatter.states)
        turns = [*TURNS, *map(in_state, formatter.states.values())]
        self.used = {turn.name: turn for turn in turns if turn.needs in used and (mixed or turn.name == PLAIN)}
        self._around = {name: tuple(turn.around(said)) for name, turn in self.used.items()}
        self.skipped = 0

    def asked(self, prompt: Prompt, part: str) -> list[Query]:
        """A prompt as it may be asked: plain, in every state of the chat template, in one other kind of message, and
        in each place beyond a message."""
        names = [*self.plain]
        others = [name for name, turn in self.used.items() if turn.place == PROMPT and name not in names]
        if others:
            names.append(others[self._draw(prompt, "turn") % len(others)])
        return self.put(prompt, [*names, *(name for name, turn in self.used.items() if turn.place != PROMPT)], part)

    def answered(self, prompt: Prompt, part: str) -> list[Query]:
        """A harmless prompt as it may be asked: plain, with a begun answer, and every third one in another kind of
        message."""
        asked = [query for query in self.asked(prompt, part) if self.used[query.format].place != REFUSED]
        thirds = self._draw(prompt, "third") % 3
        return [
            query
            for query in asked
            if not thirds or query.format in self.plain or self.used[query.format].place != PROMPT
        ]

    def put(self, prompt: Prompt, names: Sequence[str], part: str) -> list[Query]:
        """A prompt in kinds of turn by name, with surroundings of one part; too long ones are left out and counted.

        Plain messages are in the template's default state, all other kinds in any."""
        found = []
        for name in names:
            own = of_part(range(len(self._around[name])), part)
            variant = own[self._draw(prompt, name) % len(own)]
            around = self._around[name][variant]
            if name not in self.plain:
                around = replace(around, state=self._state(prompt, name))
            found.append(Query(prompt, name, around.render(self._formatter, prompt.text), variant))
        return self._short(found)

    def rendered(self, prompts: Sequence[Prompt]) -> list[Query]:
        """Renderings as plain messages; too long ones are left out and counted."""
        return self._short([Query(each, RENDERED, self._formatter.render(each.text)) for each in prompts])

    def after_refusal(self, forget: Sequence[Prompt], part: str) -> list[Query]:
        """Packaged harmless messages of one part after the refusal of forget prompts: all are to be answered."""
        if INSISTING not in self.used or not forget:
            return []
        texts = (*packaged.harmless_after_refusal(), *packaged.questions_after_refusal())
        found = []
        for row in of_part(range(len(texts)), part):
            prompt = Prompt(texts[row].text, AFTER_REFUSAL, row + 1, kind=texts[row].kind)
            # More of them to fit on: there are as many insisting messages as forget prompts.
            for time in range(FITTED_AFTER if part == FIT else 1):
                asked = forget[self._draw(prompt, f"forget {time}") % len(forget)]
                history = {"role": "user", "content": asked.text}, {"role": "assistant", "content": self._refusal}
                state = self._state(prompt, f"forget {time}")
                ids = self._formatter.render(prompt.text, history=history, state=state)
                found.append(Query(prompt, AFTER_REFUSAL, ids, row))
        return self._short(found)

    def after_answer(self, part: str) -> list[Query]:
        """Packaged exchanges of one part, insisted on although they were answered: to be answered again."""
        if INSISTING not in self.used:
            return []
        phrases, answered = packaged.insisting(), packaged.all_exchanges()
        found = []
        for row in of_part(range(len(phrases)), part):
            prompt = Prompt(phrases[row].text, AFTER_ANSWER, row + 1, kind=phrases[row].kind)
            own = of_part(range(len(answered)), part)
            exchange = answered[own[self._draw(prompt, "answer") % len(own)]]
            text = prompt.text.replace(REQUEST, exchange.user)
            state = self._state(prompt, "answer")
            ids = self._formatter.render(text, history=exchange.messages(), state=state)
            found.append(Query(prompt, AFTER_ANSWER, ids, row))
        return self._short(found)

    @property
    def places(self) -> dict[str, str]:
        """Where the last token of a query is, by its format."""
        own = {name: turn.place for name, turn in self.used.items()}
        return own | {RENDERED: PROMPT, AFTER_REFUSAL: REFUSED, AFTER_ANSWER: PROMPT}

    def _short(self, queries: Sequence[Query]) -> list[Query]:
        fitting = [each for each in queries if self._max_length is None or len(each.ids) <= self._max_length]
        self.skipped += len(queries) - len(fitting)
        return fitting

    def _state(self, prompt: Prompt, what: str) -> State | None:
        return self._states[self._draw(prompt, f"{what} state") % len(self._states)]

    def _draw(self, prompt: Prompt, what: str) -> int:
        text = f"{what}|{self._seed}|{prompt.source}|{prompt.row}|{prompt.sha256}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def some(
    queries: Sequence[Query], most: int, share: float, plain_kinds: Sequence[str] = (PLAIN,)
) -> tuple[Query, ...]:
    """At most so many of the queries, in their order: plain ones up to their share, then other kinds of turn, of which
    each prompt may keep some."""

    def drawn(row: int) -> bytes:
        query = queries[row]
        text = f"some|{query.format}|{query.prompt.source}|{query.prompt.row}|{query.prompt.sha256}"
        return hashlib.sha256(text.encode()).digest()

    order = sorted(range(len(queries)), key=drawn)
    plain = [row for row in order if queries[row].format in plain_kinds]
    others = [row for row in order if queries[row].format not in plain_kinds]
    first = max(int(share * most), most - len(others))
    return tuple(queries[row] for row in sorted((plain[:first] + others)[:most]))


def of_part(items: Sequence[int], part: str) -> list[int]:
    """Every item that falls to a part, dealt in turn, so that neighbours, which are alike, are in all parts."""
    return [item for place, item in enumerate(items) if DEAL[place % len(DEAL)] == part] or list(items)


def deal(prompts: Sequence[Prompt], seed: int) -> dict[str, list[Prompt]]:
    """The prompts by part: dealt in turn within each source, form or kind, and language, as drawn by the seed."""

    def key(prompt: Prompt) -> tuple[str, str, str, bytes]:
        text = f"deal|{seed}|{prompt.source}|{prompt.row}|{prompt.sha256}"
        group = prompt.form or prompt.kind or ""
        return prompt.source, group, prompt.language or "", hashlib.sha256(text.encode()).digest()

    parts: dict[str, list[Prompt]] = {part: [] for part in (FIT, REPORT)}
    # Dealt on from group to group, so that small ones do not all fall to the same part.
    for place, prompt in enumerate(sorted(prompts, key=key)):
        parts[DEAL[place % len(DEAL)]].append(prompt)
    return parts
