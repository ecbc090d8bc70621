"""A quantized graph against itself: no torch model computes the same.

Its bodies are compared with the kernels, prompts in a batch and with a cache with the same prompts alone and whole,
and its refusals with what its probed key vectors say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from exporter.onnx.check.runners import Array, Session, opened_graph
from exporter.onnx.check.self_check import (
    AFTER,
    BODIES,
    EVERY,
    KERNELS,
    SAME_TOKENS,
    Row,
    cases,
    compare,
    in_steps,
    refused,
    whole,
)

REPORT = "forget prompts as probed"
ROWS = 8
"""Prompts of a batch."""


def quantized_agree(rows: Sequence[Row]) -> bool:
    """Whether every refusal agrees, and all other next tokens but a few that rounding decides."""
    return (
        all(np.isfinite(row.difference) and row.refusals == row.positions for row in rows)
        # What follows the refusal, or a refused token, is known beforehand.
        and all(row.argmax == row.positions for row in rows if row.case in (AFTER, EVERY))
        and sum(row.argmax for row in rows) >= SAME_TOKENS * sum(row.positions for row in rows)
    )


def check_quantized(
    path: Path,
    kernels: Path | None,
    sequences: Sequence[Sequence[int]],
    pad: int,
    refusal: tuple[int, int] | None,
    probed: Sequence[tuple[Sequence[int], bool]],
) -> tuple[list[Row], bool]:
    """Compare the graph at `path` with itself; whether all agree.

    sequences: token ids of prompts; refusal: R and EOS, None where nothing is refused; probed: token ids of forget
    prompts, and whether their last token is to be refused.
    """
    token = None if refusal is None else refusal[0]
    bodies = Session(path)
    sides = {BODIES: bodies}
    rows: list[Row] = []
    if kernels is not None:
        sides[KERNELS] = Session(path, kernels)
        rows += [
            compare(case, KERNELS, bodies, sides[KERNELS], steps, token, "quantized")
            for case, steps in cases(sequences, pad, token)
        ]
    ways = list(other_ways(bodies, sequences, pad, token))
    if refusal is not None:
        ways.append(as_probed(bodies, BODIES, probed, refusal[0], pad, ROWS))
        for name, session in sides.items():
            rows.append(as_probed(session, name, probed, refusal[0], pad))
            rows.append(after_refusal(session, name, sequences, refusal))
        names = list(sides)
        del bodies, session, sides  # each holds the weights, as the next ones will
        everything = opened_graph(path)
        for name in names:
            opened = Session(path, kernels if name == KERNELS else None, changed=everything)
            rows.append(every_token(opened, name, sequences, refusal[0]))
            del opened  # before the next one holds the weights too
    return [*rows, *ways], quantized_agree([*rows, *ways])


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
    """Compare logits (positions, vocabulary) sequence by sequence."""
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


def as_probed(
    session: Session, name: str, probed: Sequence[tuple[Sequence[int], bool]], refusal: int, pad: int, size: int = 1
) -> Row:
    """Whether the last token of a prompt is refused if its key vector was inside a region; in batches of `size`."""
    right = 0
    for start in range(0, len(probed), size):
        ids, expected = zip(*probed[start : start + size], strict=True)
        batch = whole(ids, pad)
        logits, _ = session.forward(batch.ids, batch.mask)
        right += int((refused(logits[:, -1], refusal) == np.array(expected)).sum())
    return known(REPORT if size == 1 else f"{REPORT}, in batches", name, len(probed), len(probed), right)


def after_refusal(session: Session, name: str, sequences: Sequence[Sequence[int]], refusal: tuple[int, int]) -> Row:
    """Whether EOS follows R, whatever came before."""
    found = [session.forward(np.array([[*ids, refusal[0]]], np.int64))[0][0, -1].argmax() for ids in sequences]
    return known(AFTER, name, len(sequences), len(sequences), sum(int(token) == refusal[1] for token in found))


def every_token(session: Session, name: str, sequences: Sequence[Sequence[int]], refusal: int) -> Row:
    """Whether R follows every token, in a graph whose regions hold everything."""
    logits, _ = session.forward(np.array([sequences[0]], np.int64))
    return known(EVERY, name, 1, logits.shape[1], int((logits[0].argmax(-1) == refusal).sum()))


def known(case: str, name: str, sequences: int, positions: int, right: int) -> Row:
    """The row of a case in which the next tokens are known, and `right` of them were found."""
    return Row(case, name, sequences, positions, 0.0, right, right, 0)
