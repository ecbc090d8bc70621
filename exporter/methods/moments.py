"""Streaming, mergeable mean and deviation of activations, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

# Deviations below this share of the layer's median are raised to it: a dead neuron would close its hypercube.
DEVIATION_FLOOR = 1e-3


def largest_deviation(vectors: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """s(k), the largest standardised deviation max_j |k_j - mu_j| / sd_j: (..., d) -> (...), in their dtype."""
    return (vectors - mean).div_(deviation).abs_().amax(-1)


@dataclass(frozen=True)
class Gaussian:
    """Mean and floored sample deviation per dimension: float64 (layers, d) each, over `count` vectors."""

    count: int
    mean: Tensor
    deviation: Tensor

    def scores(self, vectors: Tensor) -> Tensor:
        """s(k) of each layer's key vector: (..., layers, d) -> (..., layers) float64."""
        return largest_deviation(vectors.double(), self.mean, self.deviation)


@dataclass(eq=False)
class Moments:
    """Running mean and sum of squared deviations of vectors (layers, d), without keeping the vectors.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque, without cancellation if the mean is large
    compared to the deviation.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def update(self, vectors: Tensor) -> None:
        """Add vectors (n, layers, d)."""
        vectors = vectors.double()
        mean = vectors.mean(0)
        self.merge(Moments(vectors.shape[0], mean, (vectors - mean).square().sum(0)))

    def merge(self, other: Moments) -> None:
        """Add the vectors of another instance."""
        if not other.count:
            return
        if not self.count:
            self.count, self.mean, self.squares = other.count, other.mean.clone(), other.squares.clone()
            return
        total = self.count + other.count
        shift = other.mean - self.mean
        self.mean = self.mean + shift * (other.count / total)
        self.squares = self.squares + other.squares + shift.square() * (self.count * other.count / total)
        self.count = total

    def less(self, part: Moments) -> Moments:
        """These moments without those of `part`, which were merged before; both stay unchanged."""
        count = self.count - part.count
        mean = self.mean + (self.mean - part.mean) * (part.count / count)
        apart = (part.mean - mean).square() * (part.count * count / self.count)
        return Moments(count, mean, (self.squares - part.squares - apart).clamp(min=0))

    def freeze(self) -> Gaussian:
        """The Gaussian: deviation with n-1, floored at DEVIATION_FLOOR of the layer's median.

        Raises ValueError for fewer than two vectors, if a deviation is not finite, or if no layer varies.
        """
        if self.count < 2:
            raise ValueError(f"a deviation needs at least 2 vectors, not {self.count}")
        deviation = (self.squares / (self.count - 1)).sqrt()
        median = deviation.median(-1, keepdim=True).values
        if not (torch.isfinite(self.mean).all() and torch.isfinite(deviation).all()):
            raise ValueError("activations hold NaN or infinity")
        if not (median > 0).any():
            raise ValueError("more than half of every layer's key dimensions never vary")
        # With MLP and attention in parallel (Cohere), the first layer's key depends on the token alone, and the last
        # token of a chat template is always the same. With a deviation of 1 its hypercube holds everything.
        floor = torch.where(median > 0, DEVIATION_FLOOR * median, 1.0)
        return Gaussian(self.count, self.mean, torch.maximum(deviation, floor))
