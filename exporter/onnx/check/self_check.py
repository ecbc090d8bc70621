"""What was written computes what was loaded: torch against the graph's bodies, and against the kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from onnx import ModelProto

from exporter.models.tokens import blocked
from exporter.onnx.check.runners import Array, Judged, Recorded, Runner, Session, Torch, opened_graph, opened_model

STEPS = 4
"""Tokens decoded one by one."""
TOLERANCE = 1e-3
"""The greatest difference of a logit in float32."""
SAME_TOKENS = 0.95
"""The least share of positions with the same next token in float16, where single neurons are decided by rounding."""
BODIES, KERNELS = "bodies", "kernels"
FEW = 4
"""Sequences of which some tokens are refused, or all that follow."""
SOME, EVERY = "some tokens refused", "every token refused"


@dataclass(frozen=True)
class Row:
    """A case, of one side against torch.

    difference: the greatest of any logit, of sequences without a close decision; argmax: positions with the same
    next token; refusals: positions at which both refuse or both do not; close: sequences that differ by more than
    rounding and have a decision as near to its threshold as rounding goes, which are not counted in the others. Where
    refusals differ, one of a hypercube's has to be near: see `Judged`.
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
    """Whether all that differs is rounding, in this dtype.

    Fewer than half of a case's sequences may differ by a close decision: half of a batch may be padded, and wrong.
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
    """Whether bounds stand amid keys that rounding moves: a few refusals may differ then, as a few next tokens may."""
    return case == SOME and dtype == "float16"


@dataclass(frozen=True)
class Step:
    """One forward: token ids and mask (batch, positions), the latter over the past too."""

    ids: Array
    mask: Array


class Expected:
    """What a loaded checkpoint computes in every case, so that it need not stay in memory.

    file: see `Recorded`.
    """

    def __init__(self, model: Any, sequences: Sequence[Sequence[int]], pad: int, file: IO[bytes]) -> None:
        self.refusal = model.config.unskill["refusal_token_id"]
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.cases = list(cases(sequences, pad, self.refusal))
        self.found = Recorded(file)
        runner = Torch(model)
        self._record(runner, self.cases)
        self.opened: list[tuple[Sequence[float], Case]] = []
        if self.refusal is not None:
            few = [[whole([ids], pad)] for ids in sequences[:FEW]]
            runner.forward(few[0][0].ids)
            halves = [halfway(each) for each in runner.greatest]
            self.opened = [(halves, (SOME, few)), ([np.inf] * len(halves), (EVERY, few[:1]))]
        for within, case in self.opened:
            with opened_model(model, within):
                self._record(runner, [case])

    def _record(self, runner: Judged, cases: Sequence[Case]) -> None:
        for _, runs in cases:
            for steps in runs:
                past = None
                for step in steps:
                    past = self.found.record(runner, step.ids, step.mask, past)


def room_for(sequences: Sequence[Sequence[int]], model: Any) -> int:
    """Bytes that the file of `Expected` takes at most: three cases of all sequences, others of few, some with pads."""
    positions = (3 * len(sequences) + 2 * FEW + 1) * (max(map(len, sequences)) + 2)
    return int(model.dtype.itemsize * model.config.vocab_size * positions)


def self_check(expected: Expected, path: Path, kernels: Path | None) -> tuple[list[Row], bool]:
    """Compare the graph at `path` with the checkpoint that it was made of; whether all agree.

    kernels: the library of operators, or None where it is not built.
    """
    rows: list[Row] = []
    sides = {BODIES: None} | ({KERNELS: kernels} if kernels is not None else {})

    def compared(name: str, cases: Sequence[Case], changed: ModelProto | None = None) -> None:
        session = Session(path, sides[name], arena=False, changed=changed)
        for case, runs in cases:
            rows.append(compare(case, name, expected.found, session, runs, expected.refusal, expected.dtype))

    for name in sides:
        expected.found.rewind()
        compared(name, expected.cases)
        for within, case in expected.opened:
            compared(name, [case], opened_graph(path, within))
    return rows, agree(rows, expected.dtype)


Case = tuple[str, list[list[Step]]]
"""A name, and runs of forwards, each of which goes on with the cache of the one before."""


def cases(sequences: Sequence[Sequence[int]], pad: int, refusal: int | None) -> Iterator[Case]:
    yield "prompts one by one", [[whole([ids], pad)] for ids in sequences]
    # In pairs from far apart, which are seldom of one length, and in parts with no more logits at once than the
    # longest prompt has alone: those of a large vocabulary are most of what this takes.
    longest, pairs = max(map(len, sequences)), (len(sequences) + 1) // 2
    batches = [whole(sequences[start::pairs], pad) for start in range(pairs)]
    yield "left-padded batch", [in_parts(batch, max(1, longest // len(batch.ids))) for batch in batches]
    yield "with a cache", [in_steps(ids) for ids in sequences]
    if refusal is not None:
        yield "after the refusal", [in_steps([*ids, refusal, ids[-1]]) for ids in sequences[:FEW]]


def halfway(greatest: Array) -> float:
    """Between the keys of one sequence, of which these are the greatest coordinates: about half are within.

    In the widest gap around their median, so that rounding puts none of them on the other side.
    """
    values = np.sort(np.append(greatest, 0))
    middle = values[len(values) // 4 : -(-3 * len(values) // 4)]
    place = np.diff(middle).argmax()
    return float(middle[place : place + 2].mean())


def whole(sequences: Sequence[Sequence[int]], pad: int) -> Step:
    length = max(map(len, sequences))
    ids = np.array([[pad] * (length - len(each)) + list(each) for each in sequences], np.int64)
    mask = np.array([[0] * (length - len(each)) + [1] * len(each) for each in sequences], np.int64)
    return Step(ids, mask)


def split(step: Step, ends: Sequence[int]) -> list[Step]:
    """A forward as several, each up to one of these positions and with the cache of those before."""
    return [Step(step.ids[:, start:end], step.mask[:, :end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def in_parts(step: Step, length: int) -> list[Step]:
    """The same batch, at most that many positions at once."""
    return split(step, [*range(length, step.ids.shape[1], length), step.ids.shape[1]])


def in_steps(ids: Sequence[int]) -> list[Step]:
    """All but the last tokens at once, those one by one."""
    first = max(1, len(ids) - STEPS)
    return split(whole([ids], 0), [first, *range(first + 1, len(ids) + 1)])


def compare(
    case: str,
    name: str,
    theirs: Judged,
    ours: Runner,
    runs: Sequence[Sequence[Step]],
    refusal: int | None,
    dtype: str,
) -> Row:
    """Run the same forwards on both sides."""
    tolerance = TOLERANCE if dtype == "float32" else np.inf
    sequences = positions = argmax = refusals = left_out = 0
    worst = 0.0
    for steps in runs:
        rows = len(steps[0].ids)
        differences, close, edge = np.zeros(rows), np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        counts = np.zeros((3, rows), np.int64)
        past: list[Any] = [None, None]
        for step in steps:
            real = step.mask[:, -step.ids.shape[1] :].astype(bool)
            expected, past[0] = theirs.forward(step.ids, step.mask, past[0])
            found, past[1] = ours.forward(step.ids, step.mask, past[1])
            close, edge = close + theirs.close, edge + theirs.edge
            gap = np.array([greatest(*row) for row in zip(expected, found, real, strict=True)])
            differences = np.maximum(differences, np.nan_to_num(gap, nan=np.inf))
            same = [expected.argmax(-1) == found.argmax(-1)]
            same.append(refused(expected, refusal) == refused(found, refusal))
            counts += np.stack([real.sum(-1), *((each & real).sum(-1) for each in same)])
            del expected, found  # before the next ones are there too
        same_refusals = counts[2] == counts[0]
        differs = ~same_refusals | (differences > tolerance)
        # A neuron that was decided otherwise moves logits; a refusal is another only by a key at a hypercube's face.
        excused = (close > 0) & (same_refusals | (edge > 0)) & np.isfinite(differences)
        counted = ~(differs & excused) | amid_keys(case, dtype)
        sequences, left_out = sequences + rows, left_out + int((~counted).sum())
        positions, argmax, refusals = (
            total + int(each[counted].sum()) for total, each in zip((positions, argmax, refusals), counts, strict=True)
        )
        worst = max([worst, *differences[counted]])
    return Row(case, name, sequences, positions, float(worst), argmax, refusals, left_out)


def greatest(expected: Array, found: Array, real: Array) -> float:
    """The greatest difference of logits (positions, vocabulary) at real positions; 0 where there are none.

    One position at a time: differences of all are as large as the logits themselves.
    """
    places = np.flatnonzero(real)
    gaps = [np.abs(np.subtract(expected[at], found[at], dtype=np.float32)).max() for at in places]
    return float(np.max(gaps, initial=0))


def refused(logits: Array, refusal: int | None) -> Array:
    """Where (batch, positions) only the refusal can follow."""
    if refusal is None:
        return np.zeros(logits.shape[:-1], bool)
    found: Array = blocked(logits[..., refusal])
    return found
