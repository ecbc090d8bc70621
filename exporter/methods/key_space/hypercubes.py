"""Key Space Detection: the hypercubes of the forget set (section 4 of arXiv:2503.21730)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.methods.moments import Gaussian, Moments, largest_deviation
from exporter.prompts.formats import Query

# Fit prompts that every format must have to get a hypercube of its own: deviations of fewer hold little.
FIT_PER_FORMAT = 20

Variant = tuple[str, int]
"""A format and the number of its system prompt, exchange or fold."""


@dataclass(frozen=True)
class KeySpace:
    """Hypercubes whose size is not set yet: mean and deviation of the forget keys, one Gaussian for each format.

    One hypercube over all formats has to reach from one format's keys to another's and takes in what lies between
    (SmolLM2, layer 17, alpha calibrated, near-miss everyday prompts inside: 4.6 % with one, 2.6 % with three; medians
    of six draws of the parts).
    """

    formats: tuple[str, ...]
    gaussians: tuple[Gaussian, ...]

    def scores(self, vectors: Tensor) -> Tensor:
        """s(k), the least over the hypercubes: (..., layers, d_ff) -> (..., layers) float64."""
        return torch.stack([gaussian.scores(vectors) for gaussian in self.gaussians]).amin(0)

    def scorer(self, device: torch.device) -> LayerScorer:
        return LayerScorer(
            torch.stack([gaussian.mean for gaussian in self.gaussians], 1).to(device, torch.float32),
            torch.stack([gaussian.deviation for gaussian in self.gaussians], 1).to(device, torch.float32),
        )

    def bounds(self, layer: int, alpha: float) -> Tensor:
        """The hypercubes mu +- alpha * sd of one layer: (c, 2, d_ff) float32, lower and upper, rounded outwards.

        So a key with s(k) <= alpha is inside the stored bounds, whatever float32 can say of them.
        """
        cubes = []
        for gaussian in self.gaussians:
            mean, reach = gaussian.mean[layer], alpha * gaussian.deviation[layer]
            exact = torch.stack([mean - reach, mean + reach])  # (2, d_ff) float64
            near = exact.float()
            lower = torch.where(near[0].double() > exact[0], step(near[0], -torch.inf), near[0])
            upper = torch.where(near[1].double() < exact[1], step(near[1], torch.inf), near[1])
            cubes.append(torch.stack([lower, upper]))
        return torch.stack(cubes)


@dataclass(frozen=True)
class LayerScorer:
    """Scores of one layer's keys in float32, for the many keys of an answer. mean, deviation: (layers, c, d_ff)."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, layer: int, keys: Tensor) -> Tensor:
        """(n, d_ff) -> (n,) float64, to a relative 1e-6."""
        keys = keys.float()
        cubes = [
            largest_deviation(keys, mean, deviation)
            for mean, deviation in zip(self.mean[layer], self.deviation[layer], strict=True)
        ]
        return torch.stack(cubes).amin(0).double()


class KeyMoments:
    """Running mean and deviation of forget keys, apart for every variant of a format (see `Query`)."""

    def __init__(self) -> None:
        self._variants: dict[Variant, Moments] = {}
        self._hypercubes: dict[str, Moments] = {}
        self._less: dict[Variant, Gaussian] = {}

    def update(self, queries: Sequence[Query], keys: Tensor) -> None:
        """Add the keys (n, layers, d_ff) of the last tokens of n queries."""
        self._hypercubes, self._less = {}, {}
        rows: dict[Variant, list[int]] = {}
        for row, query in enumerate(queries):
            rows.setdefault((query.format, query.variant), []).append(row)
        for name, chosen in rows.items():
            self._variants.setdefault(name, Moments()).update(keys[chosen])

    def key_space(self) -> KeySpace:
        """One hypercube for each format; one for all ("all") where a format has fewer than FIT_PER_FORMAT keys.

        Raises ValueError on NaN.
        """
        groups = self._groups()
        return KeySpace(tuple(groups), tuple(moments.freeze() for moments in groups.values()))

    def without(self, query: Query, whole: KeySpace) -> KeySpace:
        """The key space `whole` less what was fitted in the query's own variant, as far as half of its format remains.

        A query of the fit does not count for itself then, and system prompts and exchanges are as new as those that
        users bring.
        """
        variant = query.format, query.variant
        part = self._variants.get(variant)
        own = query.format if query.format in whole.formats else "all"
        fitted = self._groups()[own]
        if part is None or 2 * part.count > fitted.count:
            return whole
        if variant not in self._less:  # many queries share one, and a fit takes a median over every layer
            self._less[variant] = fitted.less(part).freeze()
        gaussians = zip(whole.formats, whole.gaussians, strict=True)
        return KeySpace(whole.formats, tuple(self._less[variant] if name == own else each for name, each in gaussians))

    def _groups(self) -> dict[str, Moments]:
        """The moments of each hypercube, by its name; kept until the next update."""
        if not self._hypercubes:
            formats: dict[str, Moments] = {}
            for name in sorted(self._variants):
                formats.setdefault(name[0], Moments()).merge(self._variants[name])
            if any(moments.count < FIT_PER_FORMAT for moments in formats.values()):
                everything = Moments()
                for moments in formats.values():
                    everything.merge(moments)
                formats = {"all": everything}
            self._hypercubes = formats
        return self._hypercubes


def opened_bounds(shape: Sequence[int], within: float = torch.inf) -> Tensor:
    """Bounds (c, 2, d_ff) float32 that hold every key with no coordinate further than that from zero."""
    return torch.tensor([[-within], [within]]).expand(*shape).contiguous()


def closed_bounds(shape: Sequence[int]) -> Tensor:
    """Bounds that hold nothing."""
    return opened_bounds(shape, -torch.inf)


def step(values: Tensor, towards: float) -> Tensor:
    return torch.nextafter(values, torch.full_like(values, towards))
