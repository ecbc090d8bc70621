"""Statistics of every neuron over all real tokens, by layer: of its pre-activation, and of the size of its key.

Pads do not count, nor does a BOS token at the beginning: it is an attention sink, with activations far from all
others, and the same in forget and retain texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.methods.moments import DEVIATION_FLOOR, Gaussian, Moments


class NeuronMoments:
    """Running moments of pre-activations (or any activations) of all layers; mergeable, float64 between batches.

    Within a batch, sums are float32 products with ones, around the mean so far to avoid cancellation: a hundred times
    faster than float64 and within 1e-5 of it.
    """

    def __init__(self, layers: int) -> None:
        self.layers = tuple(Moments() for _ in range(layers))

    def update(self, layer: int, values: Tensor, mask: Tensor) -> None:
        """Add values (..., d) of one layer where mask (...) is 1."""
        flat = real_tokens(values, mask)
        count = len(flat)
        if not count:
            return
        weights = torch.ones(count, device=flat.device)
        moments = self.layers[layer]
        about = moments.mean.float().to(flat.device) if moments.count else weights @ flat / count
        apart = flat - about
        first, second = (weights @ apart).double(), (weights @ apart.square()).double()
        mean, squares = about.double() + first / count, (second - first.square() / count).clamp(min=0)
        moments.merge(Moments(count, mean.cpu(), squares.cpu()))

    def merge(self, other: NeuronMoments) -> None:
        """Add the values of another instance."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.merge(theirs)

    def freeze(self) -> Gaussian:
        """Mean and floored deviation of every neuron, (layers, d_ff). Raises ValueError as `Moments.freeze`."""
        mean = torch.stack([moments.mean for moments in self.layers])
        squares = torch.stack([moments.squares for moments in self.layers])
        return Moments(self.layers[0].count, mean, squares).freeze()


@dataclass(frozen=True)
class NeuronStatistics:
    """One side, forget or retain: Gaussians of the pre-activations v, and mean |k| of the key vectors.

    Both (layers, d_ff) float64.
    """

    gaussian: Gaussian
    magnitude: Tensor


class NeuronSums:
    """Running sums for `NeuronStatistics`: mergeable, float64 between batches."""

    def __init__(self, layers: int) -> None:
        self.moments = NeuronMoments(layers)
        self.magnitudes: list[Tensor] = [torch.zeros((), dtype=torch.float64) for _ in range(layers)]

    def update_keys(self, layer: int, keys: Tensor, mask: Tensor) -> None:
        """Add k (..., d_ff) of one layer where mask (...) is 1; `moments` takes v."""
        flat = real_tokens(keys, mask).abs()
        weights = torch.ones(len(flat), device=flat.device)
        self.magnitudes[layer] = self.magnitudes[layer] + (weights @ flat).double().cpu()

    def merge(self, other: NeuronSums) -> None:
        """Add the sums of another instance."""
        self.moments.merge(other.moments)
        self.magnitudes = [mine + theirs for mine, theirs in zip(self.magnitudes, other.magnitudes, strict=True)]

    def freeze(self) -> NeuronStatistics:
        """Raises ValueError as `Moments.freeze`."""
        return NeuronStatistics(self.moments.freeze(), torch.stack(self.magnitudes) / self.moments.layers[0].count)

    def tensors(self) -> dict[str, Tensor]:
        """Everything, to be saved: counts (layers,) int64, the rest (layers, d_ff) float64."""
        return {
            "count": torch.tensor([moments.count for moments in self.moments.layers]),
            "mean": torch.stack([moments.mean for moments in self.moments.layers]),
            "squares": torch.stack([moments.squares for moments in self.moments.layers]),
            "magnitude": torch.stack(self.magnitudes),
        }

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> NeuronSums:
        """The inverse of `tensors`."""
        sums = cls(len(tensors["count"]))
        rows = zip(tensors["count"].tolist(), tensors["mean"], tensors["squares"], strict=True)
        for moments, row in zip(sums.moments.layers, rows, strict=True):
            moments.merge(Moments(*row))
        sums.magnitudes = list(tensors["magnitude"])
        return sums


def real_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """The rows (n, d) float32 of values (..., d) where mask (...) is 1. Pads may hold NaN."""
    flat, keep = values.flatten(0, -2), mask.flatten().bool().to(values.device)
    return (flat if bool(keep.all()) else flat[keep]).float()


def floored(gaussian: Gaussian) -> Tensor:
    """Which neurons vary so little that `freeze` has raised their deviation: (layers, d_ff) bool."""
    # Raising the smallest deviations leaves the median unchanged.
    return gaussian.deviation <= DEVIATION_FLOOR * gaussian.deviation.median(-1, keepdim=True).values
