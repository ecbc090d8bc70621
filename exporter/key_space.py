"""Key Space Detection: the hypercube of the forget set (section 4 of arXiv:2503.21730)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.statistics import Gaussian


@dataclass(frozen=True)
class Hypercube:
    """mean +- alpha * deviation of one layer's forget keys. `bounds`: (2, d_ff) float32, lower and upper."""

    layer: int
    alpha: float
    bounds: Tensor


def hypercube(keys: Gaussian, layer: int, alpha: float) -> Hypercube:
    """The hypercube mu +- alpha * sd of one layer, its bounds rounded outwards to float32.

    So a key with s(k) <= alpha is inside the stored bounds, whatever float32 can say of them.
    """
    mean, reach = keys.mean[layer], alpha * keys.deviation[layer]
    exact = torch.stack([mean - reach, mean + reach])  # (2, d_ff) float64
    bounds = exact.float()
    lower = torch.where(bounds[0].double() > exact[0], step(bounds[0], -torch.inf), bounds[0])
    upper = torch.where(bounds[1].double() < exact[1], step(bounds[1], torch.inf), bounds[1])
    return Hypercube(layer, alpha, torch.stack([lower, upper]))


def step(values: Tensor, towards: float) -> Tensor:
    return torch.nextafter(values, torch.full_like(values, towards))
