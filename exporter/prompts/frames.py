"""What forget prompts have in common around their questions, and what a hypercube makes of harmless prompts in it.

A hypercube sees the last token of a prompt. Where all forget prompts end alike, as by a `template=` or a question
mark, and retain prompts do not, it may tell that apart instead of the skill.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING
from unicodedata import category

from exporter.prompts.sources import Prompt

if TYPE_CHECKING:
    pass

Pieces = tuple[str, ...]

SHARE = 0.9
"""Share of a source's prompts that have to begin or end alike: data sets have odd rows (of 1,000 GSM8K questions 35 do
not end in a question mark, of 374 MBPP prompts 3 not in a full stop)."""
AT_LEAST = 10
"""Prompts that a source must have: a few may begin alike by chance. Smaller sources are looked at together."""
MARKS = frozenset(".,;:!?…。！？؟।")


@dataclass(frozen=True)
class Frame:
    """What prompts begin and end with, in pieces (see `pieces`); either may be nothing."""

    start: Pieces = ()
    end: Pieces = ()

    def __bool__(self) -> bool:
        return bool(self.start or self.end)

    def holds(self, text: str) -> bool:
        """Whether a prompt begins and ends so."""
        body = pieces(text)
        inner = body[len(self.start) :] if body[: len(self.start)] == self.start else None
        return inner is not None and (not self.end or inner[-len(self.end) :] == self.end)

    def lacking(self, texts: Sequence[str]) -> Frame:
        """The sides that less than half of other prompts have; with no other prompts both."""

        def rare(side: Frame) -> bool:
            return not texts or 2 * sum(map(side.holds, texts)) < len(texts)

        start, end = Frame(self.start), Frame(end=self.end)
        return Frame(self.start if rare(start) else (), self.end if rare(end) else ())

    def put(self, text: str, instead: Frame) -> str:
        """A prompt in this frame instead of in its own. What it has of this frame already stays as it is."""
        body = pieces(text)
        if self.start:
            body = self.start + without_start(without_start(body, instead.start, whole=True), self.start)
        if self.end:
            end = self.end[::-1]
            turned = without_start(without_start(body[::-1], instead.end[::-1], whole=True), end)
            if self.end[0] in MARKS:
                # A question mark takes the place of the full stop: both together are another token.
                while turned and (turned[0] in MARKS or turned[0].isspace()):
                    turned = turned[1:]
            body = turned[::-1] + self.end
        return "".join(body)

    def meet(self, others: Sequence[Frame]) -> Frame:
        """What it shares with any of other frames, as much as possible on each side."""
        start = max((common(self.start, other.start) for other in others), default=0)
        end = max((common(self.end[::-1], other.end[::-1]) for other in others), default=0)
        return Frame(self.start[:start], self.end[len(self.end) - end :])

    def inner(self, text: str) -> str:
        """A prompt without what it has of this frame, whole or not at all on each side."""
        body = without_start(pieces(text), self.start, whole=True)
        return "".join(without_start(body[::-1], self.end[::-1], whole=True)[::-1])


@dataclass(frozen=True)
class FramedSource:
    """Forget sources (one, or several of one frame), their frame, and how many of their `prompts` have it."""

    sources: tuple[str, ...]
    frame: Frame
    having: int
    prompts: int


def pieces(text: str) -> Pieces:
    """A text in whole words and single other characters; of scripts without spaces every character is a piece."""
    found: list[str] = []
    for is_word, run in groupby(
        text, key=lambda each: category(each)[0] in "LMN" and not "\u3040" <= each <= "\u9fff"
    ):
        characters = list(run)
        found += ["".join(characters)] if is_word else characters
    return tuple(found)


def common(one: Pieces, other: Pieces) -> int:
    """How many pieces both begin with."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def without_start(body: Pieces, start: Pieces, *, whole: bool = False) -> Pieces:
    """Pieces without what they have of a beginning; `whole`: all of it, or nothing."""
    count = common(body, start)
    return body[count:] if count == len(start) or not whole else body


def frame_of(texts: Sequence[str]) -> Frame:
    """The longest beginning, and of what remains the longest ending, of at least SHARE of texts."""
    rows = [pieces(text) for text in texts]
    start = longest(rows)
    rests = [without_start(row, start, whole=True)[::-1] for row in rows]
    return Frame(start, longest(rests)[::-1])


def longest(rows: Sequence[Pieces]) -> Pieces:
    """The longest beginning of at least SHARE of rows."""
    needed = max(1, math.ceil(SHARE * len(rows)))
    found: list[str] = []
    while True:
        counts = Counter(row[len(found)] for row in rows if len(row) > len(found))
        # More than half have it, so there is no other.
        piece, count = next(iter(counts.most_common(1)), ("", 0))
        if count < needed:
            return tuple(found)
        rows = [row for row in rows if row[len(found) : len(found) + 1] == (piece,)]
        found.append(piece)


def frames_by_source(prompts: Sequence[Prompt]) -> list[FramedSource]:
    """The sources that have a frame; those with the same one together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.source,), []).append(prompt.text)
    small = {names: texts for names, texts in groups.items() if len(texts) < AT_LEAST}
    groups = {names: texts for names, texts in groups.items() if names not in small}
    pooled = [text for texts in small.values() for text in texts]
    if len(pooled) >= AT_LEAST:
        groups[tuple(name for (name,) in small)] = pooled
    found: dict[Frame, FramedSource] = {}
    for names, texts in groups.items():
        if frame := frame_of(texts):
            known = found.get(frame, FramedSource((), frame, 0, 0))
            having = known.having + sum(map(frame.holds, texts))
            found[frame] = FramedSource((*known.sources, *names), frame, having, known.prompts + len(texts))
    return list(found.values())


def frames_lacked(forget: Sequence[Prompt], retain: Sequence[Prompt]) -> Iterator[FramedSource]:
    """The frames of forget prompts, as far as most retain prompts lack them."""
    if not retain:
        return
    texts = [prompt.text for prompt in retain]
    for source in frames_by_source(forget):
        if frame := source.frame.lacking(texts):
            mine = [prompt.text for prompt in forget if prompt.source in source.sources]
            yield FramedSource(source.sources, frame, sum(map(frame.holds, mine)), len(mine))
