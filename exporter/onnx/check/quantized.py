"""A quantized graph against itself: there is no torch model that computes what it computes.

Its bodies are held against the kernels, prompts in a batch and with a cache against the same alone and whole, and what
it refuses against what its probed key vectors say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.onnx.check.runners import Array, Session, opened_graph
from exporter.onnx.check.self_check import BODIES, KERNELS, SAME_TOKENS, Row, cases, compare, in_steps, refused, whole


class Bodies(Session):
    """A graph without kernels, which others are held against; how close its decisions are is not known."""

    close: Array
    edge: Array

    def forward(self, ids: Array, mask: Array | None = None, past: Any = None) -> tuple[Array, Any]:
        self.close = self.edge = np.zeros(len(ids), np.int64)
        return super().forward(ids, mask, past)


@dataclass(frozen=True)
class Checked:
    """rows: what has to agree."""

    rows: list[Row]

    @property
    def agrees(self) -> bool:
        """Whether every refusal agrees, and of the other next tokens all but a few that rounding decides."""
        sound = all(np.isfinite(row.difference) and row.refusals == row.positions for row in self.rows)
        exact = all(row.argmax == row.positions for row in self.rows if row.case in EXPECTED)
        return (
            sound
            and exact
            and sum(each.argmax for each in self.rows) >= SAME_TOKENS * sum(each.positions for each in self.rows)
        )


REPORT, AFTER, EVERY = "forget prompts as probed", "after the refusal", "every token refused"
ROWS = 8
EXPECTED = (AFTER, EVERY)
"""Cases whose next tokens are known beforehand."""


def check_quantized(
    path: Path,
    kernels: Path | None,
    sequences: Sequence[Sequence[int]],
    pad: int,
    refusal: tuple[int, int] | None,
    probed: Sequence[tuple[Sequence[int], bool]],
) -> Checked:
    """sequences: token ids of prompts; refusal: R and EOS, None where nothing is refused;
    probed: token ids of forget prompts, and whether their last token is to be refused."""
    token = None if refusal is None else refusal[0]
    bodies = Bodies(path)
    sides: dict[str, Session] = {BODIES: bodies}
    rows: list[Row] = []
    if kernels is not None:
        sides[KERNELS] = Session(path, kernels)
        rows += [
            compare(case, KERNELS, bodies, sides[KERNELS], steps, token, "quantized")
            for case, steps in cases(sequences, pad, token)
        ]
    ways = list(other_ways(bodies, sequences, pad, token))
    if token is not None:
        ways.append(in_batches(bodies, probed, pad, token))
    if refusal is not None:
        for name in sides:
            rows.append(as_probed(sides[name], name, probed, refusal[0]))
            rows.append(after_refusal(sides[name], name, sequences, refusal))
        names = list(sides)
        del bodies, sides  # each holds the weights, as the next ones will
        everything = opened_graph(path)
        for name in names:
            session = Session(path, kernels if name == KERNELS else None, changed=everything)
            rows.append(every_token(session, name, sequences, refusal[0]))
            del session  # before the next one holds the weights too
    return Checked([*rows, *ways])


def other_ways(session: Session, sequences: Sequence[Sequence[int]], pad: int, refusal: int | None) -> Iterator[Row]:
    """Prompts in a left-padded batch, and with a cache, against the same prompts alone and whole."""
    alone = [session.forward(np.array([ids], np.int64))[0][0] for ids in sequences]
    batch = whole(sequences, pad)
    logits, _ = session.forward(batch.ids, batch.mask)
    together = [row[-len(ids) :] for row, ids in zip(logits, sequences, strict=True)]
    yield against("left-padded batch, against alone", alone, together, refusal)
    pieces = []
    for ids in sequences:
        found, past = [], None
        for step in in_steps(ids):
            part, past = session.forward(step.ids, step.mask, past)
            found.append(part[0])
        pieces.append(np.concatenate(found))
    yield against("with a cache, against whole", alone, pieces, refusal)


def against(case: str, expected: Sequence[Array], found: Sequence[Array], refusal: int | None) -> Row:
    """Logits (positions, vocabulary) of each sequence."""
    pairs = list(zip(expected, found, strict=True))
    return Row(
        case,
        BODIES,
        len(pairs),
        sum(len(one) for one, _ in pairs),
        max(float(np.abs(one - other).max()) for one, other in pairs),
        sum(int((one.argmax(-1) == other.argmax(-1)).sum()) for one, other in pairs),
        sum(int((refused(one, refusal) == refused(other, refusal)).sum()) for one, other in pairs),
        0,
    )


def as_probed(session: Session, name: str, probed: Sequence[tuple[Sequence[int], bool]], refusal: int) -> Row:
    """Whether the last token of each prompt is refused where its key vector was found inside a hypercube."""
    right = 0
    for ids, expected in probed:
        logits, _ = session.forward(np.array([ids], np.int64))
        right += bool(refused(logits[0, -1:], refusal)[0]) is expected
    return Row(REPORT, name, len(probed), len(probed), 0.0, right, right, 0)


def in_batches(session: Session, probed: Sequence[tuple[Sequence[int], bool]], pad: int, refusal: int) -> Row:
    """The same in left-padded batches of ROWS, of prompts of all lengths."""
    right = 0
    for start in range(0, len(probed), ROWS):
        part = probed[start : start + ROWS]
        batch = whole([ids for ids, _ in part], pad)
        logits, _ = session.forward(batch.ids, batch.mask)
        right += sum(
            bool(hit) is expected for hit, (_, expected) in zip(refused(logits[:, -1], refusal), part, strict=True)
        )
    return Row(f"{REPORT}, in batches", BODIES, len(probed), len(probed), 0.0, right, right, 0)


def after_refusal(session: Session, name: str, sequences: Sequence[Sequence[int]], refusal: tuple[int, int]) -> Row:
    """Whether EOS follows R, whatever was before."""
    found = [session.forward(np.array([[*ids, refusal[0]]], np.int64))[0][0, -1].argmax() for ids in sequences]
    right = sum(int(token) == refusal[1] for token in found)
    return Row(AFTER, name, len(sequences), len(sequences), 0.0, right, right, 0)


def every_token(session: Session, name: str, sequences: Sequence[Sequence[int]], refusal: int) -> Row:
    """Whether R follows every token, of a graph whose hypercubes hold everything."""
    logits, _ = session.forward(np.array([sequences[0]], np.int64))
    right = int((logits[0].argmax(-1) == refusal).sum())
    return Row(EVERY, name, 1, logits.shape[1], 0.0, right, right, 0)
