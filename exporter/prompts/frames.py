"""The frame of forget prompts: the words that all of them begin or end with.

A hypercube sees the last token of a prompt. Where all forget prompts end alike, as by a `template=` or a question
mark, and retain prompts do not, it may detect that ending instead of the skill.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import dropwhile, groupby, takewhile
from unicodedata import category

from exporter.prompts.sources import Prompt

Pieces = tuple[str, ...]

SHARE = 0.9
"""Share of a source's prompts that must begin or end alike: data sets have odd rows (of 1,000 GSM8K questions 35 do
not end in a question mark, of 374 MBPP prompts 3 not in a full stop)."""
AT_LEAST = 10
"""Prompts that a source must have: a few may begin alike by chance. Smaller sources are taken together."""
MARKS = frozenset(".,;:!?…。！？؟।")


@dataclass(frozen=True)
class Frame:
    """What prompts begin and end with, in pieces (see `pieces`); either may be empty."""

    start: Pieces = ()
    end: Pieces = ()

    def __bool__(self) -> bool:
        return bool(self.start or self.end)

    def holds(self, text: str) -> bool:
        """Whether a prompt has both sides of this frame."""
        body, count = pieces(text), len(self.start)
        return body[:count] == self.start and (not self.end or body[count:][-len(self.end) :] == self.end)

    def lacking(self, texts: Sequence[str]) -> Frame:
        """The sides that fewer than half of other prompts have."""
        start, end = (
            2 * sum(map(side.holds, texts)) < len(texts) for side in (Frame(self.start), Frame(end=self.end))
        )
        return Frame(self.start if start else (), self.end if end else ())

    def put(self, text: str, instead: Frame) -> str:
        """A prompt moved from the frame `instead` into this one. What it already has of this one is not doubled."""
        body = pieces(text)
        if self.start:
            body = self.start + without_shared(without(body, instead.start), self.start)
        if self.end:
            turned = without_shared(without(body[::-1], instead.end[::-1]), self.end[::-1])
            if self.end[0] in MARKS:
                # A question mark takes the place of the full stop: both together are another token.
                turned = tuple(dropwhile(lambda piece: piece in MARKS or piece.isspace(), turned))
            body = turned[::-1] + self.end
        return "".join(body)

    def meet(self, others: Collection[Frame]) -> Frame:
        """The most that it shares with any other frame, on each side."""
        starts = (common(self.start, other.start) for other in others)
        ends = (common(self.end[::-1], other.end[::-1]) for other in others)
        return Frame(max(starts, key=len, default=()), max(ends, key=len, default=())[::-1])

    def inner(self, text: str) -> str:
        """A prompt without the sides of this frame that it has in full."""
        return "".join(without(without(pieces(text), self.start)[::-1], self.end[::-1])[::-1])


@dataclass(frozen=True)
class FramedSource:
    """Forget sources that share a frame, the frame, and how many of their `prompts` have it."""

    sources: tuple[str, ...]
    frame: Frame
    having: int
    prompts: int


def pieces(text: str) -> Pieces:
    """A text as whole words and single other characters; in scripts without spaces every character is a piece."""
    runs = groupby(text, key=lambda each: category(each)[0] in "LMN" and not "\u3040" <= each <= "\u9fff")
    return tuple(piece for is_word, run in runs for piece in (["".join(run)] if is_word else run))


def common(one: Pieces, other: Pieces) -> Pieces:
    """What both begin with."""
    return tuple(a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def without(body: Pieces, start: Pieces) -> Pieces:
    """Pieces without a beginning, if they have all of it."""
    return body[len(start) :] if body[: len(start)] == start else body


def without_shared(body: Pieces, start: Pieces) -> Pieces:
    """Pieces without as much as they have of a beginning."""
    return body[len(common(body, start)) :]


def frame_of(texts: Sequence[str]) -> Frame:
    """The longest beginning of at least SHARE of texts, and the longest ending of what remains of them."""
    rows = [pieces(text) for text in texts]
    start = longest(rows)
    return Frame(start, longest([without(row, start)[::-1] for row in rows])[::-1])


def longest(rows: Sequence[Pieces]) -> Pieces:
    """The longest beginning of at least SHARE of rows: more than half, so no other is as long."""
    needed = max(1, math.ceil(SHARE * len(rows)))
    ordered = sorted(rows)  # rows that begin alike are neighbours
    return max(map(common, ordered, ordered[needed - 1 :]), key=len, default=())


def frames(prompts: Sequence[Prompt]) -> dict[str, Frame]:
    """Frames by source, for the sources that have one."""
    texts = defaultdict(list)
    for prompt in prompts:
        texts[prompt.source].append(prompt.text)
    large = [[name] for name, own in texts.items() if len(own) >= AT_LEAST]
    small = [name for name, own in texts.items() if len(own) < AT_LEAST]
    found: dict[str, Frame] = {}
    for names in (*large, small):
        together = [text for name in names for text in texts[name]]
        if len(together) >= AT_LEAST and (frame := frame_of(together)):
            found |= dict.fromkeys(names, frame)
    return found


def frames_lacked(forget: Sequence[Prompt], retain: Sequence[Prompt]) -> list[FramedSource]:
    """The frames of forget prompts, as far as most retain prompts lack them; sources that share a frame together."""
    names: dict[Frame, list[str]] = defaultdict(list)
    for name, frame in frames(forget).items():
        names[frame].append(name)
    others = [prompt.text for prompt in retain]
    found = []
    for frame, sources in names.items():
        if lacked := frame.lacking(others):
            texts = [prompt.text for prompt in forget if prompt.source in sources]
            found.append(FramedSource(tuple(sources), lacked, sum(map(lacked.holds, texts)), len(texts)))
    return found
