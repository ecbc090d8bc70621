"""Whether the graph computes what the checkpoint does: torch against the operators' bodies, and against kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from exporter.models.tokens import blocked, padded
from exporter.onnx.check.runners import Array, Recorded, Runner, Session, Torch, opened_graph, opened_model

STEPS = 4
"""Tokens decoded one by one."""
TOLERANCE = 1e-3
"""The largest difference of a logit that agrees, in float32."""
SAME_TOKENS = 0.95
"""The least share of positions with the same next token in float16, where rounding decides single neurons."""
BODIES, KERNELS = "bodies", "kernels"
FEW = 4
"""Sequences in the cases with refused tokens."""
AFTER, SOME, EVERY = "after the refusal", "some tokens refused", "every token refused"


@dataclass(frozen=True)
class Row:
    """One case, one side against torch.

    difference: the largest of any logit; argmax: positions with the same next token; refusals: positions at which both
    sides refuse or neither does. close: sequences left out of those three, because they differ by more than rounding
    and have a decision close to its threshold; where refusals differ, a region's decision (see `Runner`).
    """

    case: str
    side: str
    sequences: int
    positions: int
    difference: float
    argmax: int
    refusals: int
    close: int


def agree(rows: Sequence[Row], dtype: str) -> bool:
    """Whether all differences are rounding, in this dtype.

    Fewer than half of a case's sequences may have a close decision: half of a batch may be padded, and wrong.
    """
    sound = all(
        np.isfinite(row.difference)
        and row.refusals >= row.positions * (SAME_TOKENS if amid_keys(row.case, dtype) else 1)
        and 2 * row.close < row.sequences
        for row in rows
    )
    if dtype == "float32":
        return sound and all(row.difference <= TOLERANCE for row in rows)
    return sound and sum(row.argmax for row in rows) >= SAME_TOKENS * sum(row.positions for row in rows)


def amid_keys(case: str, dtype: str) -> bool:
    """Whether rounding moves keys around the bounds: a few refusals may differ then, as a few next tokens may."""
    return case == SOME and dtype == "float16"


@dataclass(frozen=True)
class Step:
    """One forward: token ids and mask (batch, positions), the latter over the past too."""

    ids: Array
    mask: Array


Case = tuple[str, list[list[Step]]]
"""A name, and runs of forwards, each of which continues with the cache of the one before."""


class Expected:
    """What a loaded checkpoint computes in every case, so that it need not stay in memory.

    file: see `Recorded`; groups: cases, each group with the reach of its opened regions (see `opened_model`), None
    where they are as fitted.
    """

    def __init__(self, model: Any, sequences: Sequence[Sequence[int]], pad: int, file: IO[bytes]) -> None:
        self.refusal = model.config.unskill["refusal_token_id"]
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.found, runner = Recorded(file), Torch(model)
        self.groups: list[tuple[Sequence[float] | None, list[Case]]] = [
            (None, list(cases(sequences, pad, self.refusal)))
        ]
        if self.refusal is not None:
            few = [[whole([ids], pad)] for ids in sequences[:FEW]]
            runner.forward(few[0][0].ids)
            halves = [halfway(each) for each in runner.greatest]
            self.groups += [(halves, [(SOME, few)]), ([np.inf] * len(halves), [(EVERY, few[:1])])]
        for within, group in self.groups:
            with opened_model(model, within) if within is not None else nullcontext():
                for steps in (steps for _, runs in group for steps in runs):
                    past = None
                    for step in steps:
                        past = self.found.record(runner, step.ids, step.mask, past)


def room_for(sequences: Sequence[Sequence[int]], model: Any) -> int:
    """The most bytes that the file of `Expected` takes: three cases of all sequences, the others of FEW; with pads."""
    positions = (3 * len(sequences) + 2 * FEW + 1) * (max(map(len, sequences)) + 2)
    return int(model.dtype.itemsize * model.config.vocab_size * positions)


def self_check(expected: Expected, path: Path, kernels: Path | None) -> tuple[list[Row], bool]:
    """Compare the graph at `path` with the checkpoint that it was made of; whether all agree.

    kernels: the library of operators, or None where it is not built.
    """
    rows: list[Row] = []
    sides = {BODIES: None} | ({KERNELS: kernels} if kernels is not None else {})
    for name, library in sides.items():
        expected.found.rewind()
        for within, group in expected.groups:
            changed = None if within is None else opened_graph(path, within)
            session = Session(path, library, arena=False, changed=changed)
            for case, runs in group:
                rows.append(compare(case, name, expected.found, session, runs, expected.refusal, expected.dtype))
            del session  # before the next one holds the weights too
    return rows, agree(rows, expected.dtype)


def cases(sequences: Sequence[Sequence[int]], pad: int, refusal: int | None) -> Iterator[Case]:
    yield "prompts one by one", [[whole([ids], pad)] for ids in sequences]
    # In pairs from far apart, which seldom have one length, and in parts with no more logits at once than the longest
    # prompt alone: with a large vocabulary they take most of the memory.
    longest, pairs = max(map(len, sequences)), (len(sequences) + 1) // 2
    batches = [whole(sequences[start::pairs], pad) for start in range(pairs)]
    yield "left-padded batch", [in_parts(batch, max(1, longest // len(batch.ids))) for batch in batches]
    yield "with a cache", [in_steps(ids) for ids in sequences]
    if refusal is not None:
        yield AFTER, [in_steps([*ids, refusal, ids[-1]]) for ids in sequences[:FEW]]


def halfway(greatest: Array) -> float:
    """A reach within which about half of the keys of one sequence lie; greatest: see `Torch`.

    It is in the widest gap around their median, so that rounding moves no key to the other side.
    """
    values = np.sort(np.append(greatest, 0))
    middle = values[len(values) // 4 : -(-3 * len(values) // 4)]
    place = np.diff(middle).argmax()
    return float(middle[place : place + 2].mean())


def whole(sequences: Sequence[Sequence[int]], pad: int) -> Step:
    """One forward of a left-padded batch."""
    batch = padded(sequences, pad, "left", torch.device("cpu"))
    return Step(batch["input_ids"].numpy(), batch["attention_mask"].numpy())


def split(step: Step, ends: Sequence[int]) -> list[Step]:
    """A forward as several, each up to one of these positions and with the cache of the one before."""
    return [Step(step.ids[:, start:end], step.mask[:, :end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def in_parts(step: Step, length: int) -> list[Step]:
    """The same batch, at most `length` positions at once."""
    return split(step, [*range(length, step.ids.shape[1], length), step.ids.shape[1]])


def in_steps(ids: Sequence[int]) -> list[Step]:
    """All but the last STEPS tokens at once, those one by one."""
    first = max(1, len(ids) - STEPS)
    return split(whole([ids], 0), [first, *range(first + 1, len(ids) + 1)])


def compare(
    case: str, name: str, theirs: Runner, ours: Runner, runs: Sequence[Sequence[Step]], refusal: int | None, dtype: str
) -> Row:
    """Run the same forwards on both sides. dtype: of `theirs`, or "quantized"; only in float32 TOLERANCE counts."""
    tolerance = TOLERANCE if dtype == "float32" else np.inf
    sequences = left_out = 0
    worst, totals = 0.0, np.zeros(3, np.int64)  # positions, same next tokens, same refusals
    for steps in runs:
        rows = len(steps[0].ids)
        differences, counts = np.zeros(rows), np.zeros((3, rows), np.int64)
        close = edge = np.zeros(rows, np.int64)
        their_cache = our_cache = None
        for step in steps:
            real = step.mask[:, -step.ids.shape[1] :].astype(bool)
            expected, their_cache = theirs.forward(step.ids, step.mask, their_cache)
            found, our_cache = ours.forward(step.ids, step.mask, our_cache)
            close, edge = close + theirs.close, edge + theirs.edge
            gap = np.array([greatest(*row) for row in zip(expected, found, real, strict=True)])
            differences = np.maximum(differences, np.nan_to_num(gap, nan=np.inf))
            same_token = expected.argmax(-1) == found.argmax(-1)
            same_refusal = refused(expected, refusal) == refused(found, refusal)
            counts += np.stack([(each & real).sum(-1) for each in (real, same_token, same_refusal)])
            del expected, found  # before the next ones are there too
        same_refusals = counts[2] == counts[0]
        differs = ~same_refusals | (differences > tolerance)
        # A neuron that is decided differently moves logits; a refusal differs only by a key at a region's face.
        excused = (close > 0) & (same_refusals | (edge > 0)) & np.isfinite(differences)
        counted = ~(differs & excused) | amid_keys(case, dtype)
        sequences, left_out = sequences + rows, left_out + int((~counted).sum())
        totals += counts[:, counted].sum(-1)
        worst = max([worst, *differences[counted]])
    positions, argmax, refusals = totals.tolist()
    return Row(case, name, sequences, positions, float(worst), argmax, refusals, left_out)


def greatest(expected: Array, found: Array, real: Array) -> float:
    """The largest difference of logits (positions, vocabulary) at real positions; 0 where there are none.

    One position at a time: all differences together take as much memory as the logits.
    """
    places = np.flatnonzero(real)
    gaps = [np.abs(np.subtract(expected[at], found[at], dtype=np.float32)).max() for at in places]
    return float(np.max(gaps, initial=0))


def refused(logits: Array, refusal: int | None) -> Array:
    """The positions (batch, positions) after which only the refusal can follow."""
    return np.zeros(logits.shape[:-1], bool) if refusal is None else np.asarray(blocked(logits[..., refusal]))
