"""Regions of the key space along discriminants: half-spaces that hold the skill, one for each place in a conversation.

A hypercube around the forget keys knows their data set better than the skill: on SmolLM2, fitted on 680 prompts of
GSM8K and others, it holds 70 % of word problems in other words where 1 % of near misses are inside, the discriminant
of the same keys 96 % (layer 21).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from custom_modeling.buffers import KSD_BOUNDS, KSD_DIRECTIONS, KSD_LIMITS
from exporter.models.kept import digest_of

STORED = "ksd.region."
"""What the names of their parts begin with in `reproduce/statistics.safetensors`, behind the skill's."""
ELSEWHERE = 10.0
"""The least score of a key that is not at the end of its place: far above any threshold."""


@dataclass(frozen=True)
class Regions:
    """Regions of one layer before the threshold is set, one for each of `places`.

    skill: (K, d_ff) float32, directions along which the others' mean lies at `shift` and the forget mean one above it;
    place: (K, d_ff) float32, directions along which keys of that place lie at or above `least`. shift, least: (K,)
    float64.
    """

    layer: int
    places: tuple[str, ...]
    skill: Tensor
    shift: Tensor
    place: Tensor
    least: Tensor

    def scores_by_place(self, vectors: Tensor) -> Tensor:
        """How far keys (..., d_ff) are from the skill at each place: (..., K) float64.

        As `fit_regions` returns them 0 at the mean of the forget keys and 1 at the mean of the others.
        """
        exact = vectors.double()
        apart = 1 - (exact @ self.skill.double().T - self.shift)
        there = exact @ self.place.double().T >= self.least
        return torch.where(there, apart, apart.clamp(min=ELSEWHERE))

    def scores(self, vectors: Tensor) -> Tensor:
        """The least of these over the places: (...) float64; inside where at most the threshold."""
        return self.scores_by_place(vectors).amin(-1)

    def levelled(self, thresholds: Tensor, common: float) -> Regions:
        """The same regions with one threshold for all places, `common`, in the place of one for each, (K,)."""
        return replace(self, shift=self.shift + common - thresholds)

    def of_places(self, kept: Sequence[int]) -> Regions:
        """The regions of some of the places, by number."""
        chosen = list(kept)
        names = tuple(self.places[number] for number in chosen)
        return Regions(self.layer, names, *(part[chosen] for part in self.parts.values()))

    def single(self) -> list[Regions]:
        """The region of each place alone."""
        return [self.of_places([number]) for number in range(len(self.places))]

    def scorer(self, device: torch.device) -> Callable[[int, Tensor], Tensor]:
        """See `KeyScores`: scores of this layer's keys (n, d_ff), and zeros for other layers."""
        here = Regions(self.layer, self.places, *(part.to(device) for part in self.parts.values()))

        def score(layer: int, keys: Tensor) -> Tensor:
            return here.scores(keys) if layer == self.layer else torch.zeros(len(keys)).double().to(device)

        return score

    def buffers(self, threshold: float) -> dict[str, Tensor]:
        """The buffers of an MLP by name: directions (2 K, d_ff) and limits (K, 2, 2 K), lower and upper.

        Lower limits are rounded downwards, so that a score of exactly the threshold is inside.
        """
        count = len(self.places)
        limits = unbounded(count, 2 * count)
        for number in range(count):
            for column, least in ((number, self.shift[number] + 1 - threshold), (count + number, self.least[number])):
                near = least.float()
                down = torch.nextafter(near, torch.tensor(-torch.inf))
                limits[number, 0, column] = torch.where(near.double() > least, down, near)
        return {KSD_DIRECTIONS: torch.cat([self.skill, self.place]), KSD_LIMITS: limits}

    @property
    def digest(self) -> str:
        """See `KeyScores`."""
        return digest_of({**self.parts, "layer": torch.tensor(self.layer)})

    @property
    def parts(self) -> dict[str, Tensor]:
        """Everything but the names, as stored in `reproduce/statistics.safetensors`."""
        return {name: getattr(self, name) for name in ("skill", "shift", "place", "least")}

    @classmethod
    def of_parts(cls, layer: int, places: Sequence[str], parts: Mapping[str, Tensor]) -> Regions:
        """Regions from what `parts` gave."""
        return cls(layer, tuple(places), *(parts[name] for name in ("skill", "shift", "place", "least")))


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The buffers of one MLP from those of several skills, in their order.

    A region bounds no other skill's coordinates, and neither the key nor a coordinate where its own method does not.
    """
    counts = [len(next(iter(each[name] for name in (KSD_LIMITS, KSD_BOUNDS) if name in each))) for each in parts]
    found: dict[str, Tensor] = {}
    if any(KSD_BOUNDS in each for each in parts):
        size = next(each[KSD_BOUNDS].shape[-1] for each in parts if KSD_BOUNDS in each)
        bounds = [each.get(KSD_BOUNDS, unbounded(count, size)) for each, count in zip(parts, counts, strict=True)]
        found[KSD_BOUNDS] = torch.cat(bounds)
    along = [each for each in parts if KSD_DIRECTIONS in each]
    if along:
        directions = torch.cat([each[KSD_DIRECTIONS] for each in along])
        limits = unbounded(sum(counts), len(directions))
        region = column = 0
        for each, count in zip(parts, counts, strict=True):
            if KSD_LIMITS in each:
                width = each[KSD_LIMITS].shape[-1]
                limits[region : region + count, :, column : column + width] = each[KSD_LIMITS]
                column += width
            region += count
        found |= {KSD_DIRECTIONS: directions, KSD_LIMITS: limits}
    return found


def unbounded(count: int, size: int) -> Tensor:
    """Bounds or limits (count, 2, size) that every finite number is within."""
    return torch.tensor([-torch.inf, torch.inf])[None, :, None].repeat(count, 1, size)
