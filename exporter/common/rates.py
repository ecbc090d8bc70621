"""Rates with exact intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binomtest


@dataclass(frozen=True)
class Rate:
    """Share of queries with a hit, with its exact 95 % (Clopper-Pearson) interval."""

    hits: int
    total: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        return self.hits / self.total if self.total else math.nan

    def as_json(self) -> dict[str, float | None]:
        return {**asdict(self), "rate": self.rate if self.total else None}


def rate(hits: int, total: int) -> Rate:
    if not total:
        return Rate(0, 0, 0.0, 1.0)
    interval = binomtest(hits, total).proportion_ci(0.95, "exact")
    return Rate(hits, total, float(interval.low), float(interval.high))


def rates(value: Any) -> Any:
    """The same nesting with every Rate as a JSON object."""
    if isinstance(value, Mapping):
        return {name: rates(inner) for name, inner in value.items()}
    return value.as_json()
