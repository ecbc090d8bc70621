"""The shrunk linear discriminant: the direction along which two sides of key vectors lie apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.methods.moments import DEVIATION_FLOOR

SHRINKAGE = 1.0
"""lambda, in squared deviations of a standardised dimension."""


@dataclass(frozen=True)
class Rows:
    """Standardised rows of two sides, and their Gram matrix, in float64.

    rows: (n, d); scale: (d,), their deviations before that; gram: (n, n), the products of all rows.
    """

    rows: Tensor
    scale: Tensor
    gram: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Rows:
        """Vectors (n, d) standardised over all rows; deviations are floored as those of hypercubes are."""
        exact = vectors.double()
        centre, scale = exact.mean(0), exact.std(0)
        scale = scale.clamp(min=max(DEVIATION_FLOOR * float(scale.median()), torch.finfo(torch.float32).tiny))
        rows = (exact - centre) / scale
        return cls(rows, scale, rows @ rows.T)

    def direction(self, coefficients: Tensor) -> Tensor:
        """The direction (d,) in the key space that a combination of rows (n,) means."""
        return (coefficients @ self.rows) / self.scale


def discriminant(gram: Tensor, forget: Tensor, weights: Tensor, shrinkage: float = SHRINKAGE) -> Tensor:
    """The discriminant (C + lambda I)^-1 (mean of forget - mean of others) as a combination of the rows: (n,).

    C is the covariance within the two sides, pooled. It is solved in sample space, in n dimensions instead of d
    (Woodbury): with X the rows less the mean of their side, times the root of their weight, and N the weights' sum,
    w = (delta - X' (X X' / N + lambda I)^-1 X delta / N) / lambda.

    gram: (n, n) products of the rows; forget: (n,) bool, which side; weights: (n,), 0 leaves a row out. float64.
    """
    sides = torch.stack([forget, ~forget]).double() * weights  # (2, n)
    shares = sides / sides.sum(1, keepdim=True)
    own = forget.long().neg().add(1)  # 0 for forget
    difference = shares[0] - shares[1]
    centred = gram - (shares @ gram)[own]
    centred = centred - (centred @ shares.T)[:, own]
    root, total = weights.sqrt(), weights.sum()
    system = root[:, None] * centred * root / total
    system.diagonal().add_(shrinkage)
    along = root * (gram @ difference - (shares @ (gram @ difference))[own])
    solved = root * torch.cholesky_solve(along[:, None], torch.linalg.cholesky(system))[:, 0] / total
    # The transpose of "less the mean of its side".
    sums = torch.stack([solved[forget].sum(), solved[~forget].sum()])
    return (difference - solved + shares.T @ sums) / shrinkage
