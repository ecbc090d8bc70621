"""Key Space Detection: the hypercubes of the forget set (section 4 of arXiv:2503.21730)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.methods.moments import Gaussian, Moments, largest_deviation
from exporter.models.kept import digest_of
from exporter.prompts.formats import Query

# Fit prompts that every format needs for a hypercube of its own: deviations of fewer are unreliable.
FIT_PER_FORMAT = 20

Variant = tuple[str, int]
"""A format, and the number of its system prompt, exchange or fold."""


@dataclass(frozen=True)
class KeySpace:
    """Hypercubes without a size: mean and deviation of the forget keys, one Gaussian for each format.

    A single hypercube over all formats would also contain what lies between their keys (SmolLM2, layer 17, alpha
    calibrated, near-miss everyday prompts inside: 4.6 % with one, 2.6 % with three; medians of six draws of parts).
    """

    formats: tuple[str, ...]
    gaussians: tuple[Gaussian, ...]

    def scores(self, vectors: Tensor) -> Tensor:
        """s(k), the minimum over the hypercubes: (..., layers, d_ff) -> (..., layers) float64."""
        return torch.stack([gaussian.scores(vectors) for gaussian in self.gaussians]).amin(0)

    def scorer(self, device: torch.device) -> Callable[[int, Tensor], Tensor]:
        """Scores of a layer's keys (n, d_ff) in float32, to a relative 1e-6, for the many keys of answers: (n,)."""
        fits = [[part.to(device, torch.float32) for part in (fit.mean, fit.deviation)] for fit in self.gaussians]

        def score(layer: int, keys: Tensor) -> Tensor:
            cubes = [largest_deviation(keys.float(), mean[layer], deviation[layer]) for mean, deviation in fits]
            return torch.stack(cubes).amin(0).double()

        return score

    @property
    def digest(self) -> str:
        """See `KeyScores`."""
        parts = (
            (f"{number} {name}", getattr(each, name))
            for number, each in enumerate(self.gaussians)
            for name in ("mean", "deviation")
        )
        return digest_of(dict(parts))

    def bounds(self, layer: int, alpha: float) -> Tensor:
        """The hypercubes mu +- alpha * sd of one layer: (c, 2, d_ff) float32, lower and upper.

        Rounded outwards, so that a key with s(k) <= alpha is inside the stored bounds.
        """
        cubes = []
        for gaussian in self.gaussians:
            mean, reach = gaussian.mean[layer], alpha * gaussian.deviation[layer]
            exact = torch.stack([mean - reach, mean + reach])  # (2, d_ff) float64
            near = exact.float()
            inside = torch.stack([near[0].double() > exact[0], near[1].double() < exact[1]])
            cubes.append(torch.where(inside, torch.nextafter(near, torch.tensor([[-torch.inf], [torch.inf]])), near))
        return torch.stack(cubes)


class KeyMoments:
    """Running mean and deviation of forget keys, for every variant of a format (see `Query`)."""

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
        """One hypercube for each format; one for all ("all") if a format has fewer than FIT_PER_FORMAT keys.

        Raises ValueError on NaN.
        """
        groups = self._groups()
        return KeySpace(tuple(groups), tuple(moments.freeze() for moments in groups.values()))

    def without(self, query: Query, whole: KeySpace) -> KeySpace:
        """The key space `whole` without the fit of the query's own variant, if half of its format remains.

        Then a query of the fit does not score itself, and its system prompt or exchange is as new as a user's.
        """
        variant = query.format, query.variant
        part = self._variants.get(variant)
        own = query.format if query.format in whole.formats else "all"
        fitted = self._groups()[own]
        if part is None or 2 * part.count > fitted.count:
            return whole
        if variant not in self._less:  # shared by many queries, and slow: a median over every layer
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
    """Bounds (c, 2, d_ff) float32 that hold every key whose coordinates are at most `within` from zero."""
    return torch.tensor([[-within], [within]]).expand(*shape).contiguous()


def closed_bounds(shape: Sequence[int]) -> Tensor:
    """Bounds that hold nothing."""
    return opened_bounds(shape, -torch.inf)
