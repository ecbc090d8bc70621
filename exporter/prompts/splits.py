"""Disjoint parts of the prompts, so that no number is reported on a prompt that something was fitted or chosen on.

Prompts are ordered by a hash of the seed and the prompt itself, so the order of the sources does not matter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from exporter.common.errors import BadInput
from exporter.prompts.formats import Query
from exporter.prompts.sources import Prompt

T = TypeVar("T", Prompt, Query)

CHOOSE, CALIBRATE, REPORT = 0.10, 0.40, 0.10
"""Shares of the forget prompts; the other 40 % are fitted on, each in every format. The more are calibrated on, the
less alpha has to exceed what it promises (SmolLM2, 400 GSM8K prompts, everyday prompts inside, means over 24 draws
of the parts: 1.7 % with 50 % fitted and 30 % calibrated, 1.1 % with 40 % each)."""
CALIBRATE_AT_LEAST = 45
"""The fewest prompts from which a rate of 95 % can be promised with 90 % confidence: 0.95^45 < 0.1."""
FIT_AT_LEAST = 0.30
"""Share that enlarging the calibration part leaves to the fit: deviations of a handful of prompts hold nothing."""


@dataclass(frozen=True)
class ForgetParts(Generic[T]):
    """Disjoint parts of the forget prompts: for the hypercubes, the layer, alpha, and the reported rates."""

    fit: tuple[T, ...]
    choose: tuple[T, ...]
    calibrate: tuple[T, ...]
    report: tuple[T, ...]


@dataclass(frozen=True)
class RetainParts(Generic[T]):
    """Disjoint halves of the retain or everyday prompts: for the layer, and for the reported rates."""

    choose: tuple[T, ...]
    report: tuple[T, ...]


def deduplicate(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts without exact repetitions; the first of each stays. A repeated one could sit in two parts."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.text, prompt)
    return list(first.values())


def check_disjoint(forget: Sequence[Prompt], retain: Sequence[Prompt]) -> None:
    """Compare the texts of the two sides, apart from white space.

    Raises:
        BadInput: More than half of either side is also on the other.
    """
    forget_texts = {" ".join(prompt.text.split()) for prompt in forget}
    retain_texts = [" ".join(prompt.text.split()) for prompt in retain]
    shared = sum(text in forget_texts for text in retain_texts)
    if 2 * shared > len(retain_texts) or 2 * len(forget_texts.intersection(retain_texts)) > len(forget_texts):
        raise BadInput(
            f"--retain: {shared} of the {len(retain_texts)} retain prompts are also forget prompts; "
            "name prompts that the model must still answer"
        )


def split_forget(
    items: Sequence[T], seed: int, *, minimum: int = 60, calibrate_at_least: int = CALIBRATE_AT_LEAST
) -> ForgetParts[T]:
    """Split into fit 40 %, choose 10 %, calibrate 40 %, report 10 %.

    The calibration part grows to `calibrate_at_least` at the cost of the fit, which keeps at least 30 %: from 90
    prompts on it always has 45, from 113 on its 40 % suffice.

    Args:
        items: Forget prompts or queries, without repetitions (see `deduplicate`).
        seed: Seed of the export.
        minimum: Least number of items; 24 for regions along discriminants, 20 where layer and alpha are given by the
            user.
        calibrate_at_least: Least size of the calibration part; 0 where alpha is given.

    Raises:
        BadInput: Fewer than `minimum` items.
    """
    if len(items) < minimum:
        fewer = {24: "24 do with --region discriminant", 20: "20 do when --layer and --alpha are given"}
        hint = "; ".join(text for number, text in fewer.items() if number < minimum)
        hint = f" ({hint})" if hint else ""
        raise BadInput(f"--forget: {len(items)} different prompts are too few; at least {minimum} are needed{hint}")
    order = iter(sorted(items, key=lambda item: _rank(item, seed)))
    return ForgetParts(*(tuple(islice(order, size)) for size in part_sizes(len(items), calibrate_at_least)))


def part_sizes(n: int, calibrate_at_least: int = CALIBRATE_AT_LEAST) -> tuple[int, int, int, int]:
    """Sizes of the parts of n forget prompts: fit, choose, calibrate, report."""
    choose, report = round(CHOOSE * n), round(REPORT * n)
    room = n - choose - report - round(FIT_AT_LEAST * n)
    calibrate = max(round(CALIBRATE * n), min(calibrate_at_least, room))
    return n - choose - calibrate - report, choose, calibrate, report


def forget_prompts_for(calibrate: int) -> int:
    """The least number of forget prompts from which the calibration part always has `calibrate`."""
    # From an n whose share alone suffices, down as long as enlarging the part does: sizes are not monotone in n.
    n = math.ceil(calibrate / CALIBRATE) + 1
    while part_sizes(n - 1)[2] >= calibrate:
        n -= 1
    return n


def split_retain(items: Sequence[T], seed: int) -> RetainParts[T]:
    """Split into halves, source by source and kind by kind (or form by form), so that both hold the same mixture."""

    def key(item: T) -> tuple[str, str, bytes]:
        prompt = _prompt(item)
        return prompt.source, prompt.kind or prompt.form or "", _rank(item, seed)

    # Dealt on from kind to kind, so that odd ones do not all give their last prompt to the same half.
    order = tuple(sorted(items, key=key))
    return RetainParts(choose=order[0::2], report=order[1::2])


def _prompt(item: Prompt | Query) -> Prompt:
    return item if isinstance(item, Prompt) else item.prompt


def _rank(item: Prompt | Query, seed: int) -> bytes:
    prompt = _prompt(item)
    return hashlib.sha256(f"split|{seed}|{prompt.source}|{prompt.row}|{prompt.sha256}".encode()).digest()
