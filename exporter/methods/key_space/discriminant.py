"""The shrunk linear discriminant: the direction along which two sides of key vectors lie apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from exporter.methods.moments import DEVIATION_FLOOR

SHRINKAGE = 1.0
"""lambda, in squared deviations of a standardised dimension."""


@dataclass(frozen=True)
class Rows:
    """Standardised rows of two sides, and their Gram matrix, in float64.

    rows: (n, d); centre, scale: (d,), their means and deviations before that; gram: (n, n), the products of all rows.
    """

    rows: Tensor
    centre: Tensor
    scale: Tensor
    gram: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Rows:
        """Vectors (n, d) standardised over all rows; deviations are floored as those of hypercubes are."""
        exact = vectors.double()
        centre, scale = exact.mean(0), exact.std(0)
        scale = scale.clamp(min=max(DEVIATION_FLOOR * float(scale.median()), torch.finfo(torch.float32).tiny))
        rows = (exact - centre) / scale
        return cls(rows, centre, scale, rows @ rows.T)

    def products(self, vectors: Tensor) -> Tensor:
        """The products of the rows with other vectors (m, d), standardised as they are: (n, m)."""
        return self.rows @ ((vectors.double() - self.centre) / self.scale).T

    def direction(self, coefficients: Tensor) -> Tensor:
        """The direction (d,) in the key space that a combination of rows (n,) means."""
        return (coefficients @ self.rows) / self.scale


@dataclass(frozen=True)
class Discriminant:
    """The discriminant (C + lambda I)^-1 (mean of forget - mean of others) of rows in sample space, up to its length.

    C is the covariance within the two sides, pooled. Its direction is that of the ridge regression, with a constant,
    of the side (1 for forget, 0 for others): the covariance of all rows is C and a multiple of the outer product of
    the difference, which changes only the length (Sherman-Morrison). What a regression without some of its rows would
    predict for them follows from the one with them, so that leaving forms out needs no further fit.

    side: (n,), the target; root: (n,), the roots of the weights; gram: (n, n), the products of the rows; away: (n, n),
    I - H, with H the hat matrix of rows times the roots of their weights; ridge: lambda and the total weight; all
    float64.
    """

    side: Tensor
    root: Tensor
    gram: Tensor
    away: Tensor
    ridge: float

    @classmethod
    def of(cls, gram: Tensor, forget: Tensor, weights: Tensor, shrinkage: float = SHRINKAGE) -> Discriminant:
        """gram: (n, n) products of the rows; forget: (n,) bool, which side; weights: (n,), 0 leaves a row out."""
        total = weights.sum()
        root, shares = weights.sqrt(), weights / total
        inner = gram @ shares
        system = root[:, None] * (gram - inner - inner[:, None] + shares @ inner) * root
        system.diagonal().add_(float(shrinkage * total))
        # By cholesky_solve: four times as fast as cholesky_inverse.
        ridge = float(shrinkage * total)
        scaled = torch.eye(len(system), dtype=system.dtype) * ridge
        away = torch.cholesky_solve(scaled, torch.linalg.cholesky(system))
        constant = root / total.sqrt()
        return cls(forget.double(), root, gram, away - torch.outer(constant, constant), ridge)

    @cached_property
    def residuals(self) -> Tensor:
        """Of the weighted regression: (n,)."""
        return self.away @ (self.root * self.side)

    @property
    def coefficients(self) -> Tensor:
        """The direction as a combination of the rows: (n,). It points from the others to forget."""
        return self.root * self.residuals

    def scores_without(
        self, unseen: Tensor, rows: Tensor, others: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """1 - (coordinate - zero) / (one - zero) of some rows along the direction fitted without the unseen rows, zero
        and one the weighted means of both sides then: (rows,); and the same of keys that are no rows, (m,).

        unseen: (n,) bool, rows that have a weight; rows: (n,) bool, some of them; others: (n, m), the products of the
        rows with other keys. lambda counts with the weight of all rows.
        """
        residuals, weights = self.residuals, self.root.square()
        without = torch.linalg.solve(self.away[unseen][:, unseen], residuals[unseen])
        # The fit without some rows is the one in which their targets are what it predicts for them.
        missed = self.root * (residuals - self.away[:, unseen] @ without)  # weight times (target - prediction)
        zero, one = (
            target - float(missed[mine].sum() / weights[mine].sum())
            for target in (0.0, 1.0)
            for mine in [(self.side == target) & ~unseen]
        )
        predicted = self.side.clone()
        predicted[unseen] -= without / self.root[unseen]
        found = 1 - (predicted[rows] - zero) / (one - zero)
        if others is None:
            return found, None
        # The direction is the rows by `missed` over the ridge, and the mean residual of the seen rows is 0.
        seen = weights * ~unseen
        constant = float(seen @ (self.side - self.gram @ missed / self.ridge) / seen.sum())
        return found, 1 - (constant + missed @ others / self.ridge - zero) / (one - zero)
