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
        """The products of other vectors (m, d), standardised as the rows are, with the rows: (m, n)."""
        return ((vectors.double() - self.centre) / self.scale) @ self.rows.T

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
    def of(
        cls,
        gram: Tensor,
        forget: Tensor,
        weights: Tensor,
        shrinkage: float = SHRINKAGE,
        rows: Tensor | None = None,
    ) -> Discriminant:
        """gram: (n, n) products of the rows; forget: (n,) bool, which side; weights: (n,), 0 leaves a row out; rows:
        (n, d), if they are at hand: with fewer dimensions than rows it is solved in these."""
        total = weights.sum()
        root, shares, ridge = weights.sqrt(), weights / total, float(shrinkage * total)
        if rows is not None and rows.shape[1] < len(rows):
            scaled = root[:, None] * (rows - shares @ rows)
            system = scaled.T @ scaled
            system.diagonal().add_(ridge)
            half = torch.linalg.solve_triangular(torch.linalg.cholesky(system), scaled.T, upper=False)
            away = half.T @ half
            away.neg_().diagonal().add_(1)
        else:
            inner = gram @ shares
            system = root[:, None] * (gram - inner - inner[:, None] + shares @ inner) * root
            system.diagonal().add_(ridge)
            # By cholesky_solve: four times as fast as cholesky_inverse.
            away = torch.cholesky_solve(torch.eye(len(gram)).double() * ridge, torch.linalg.cholesky(system))
        constant = root / total.sqrt()
        return cls(forget.double(), root, gram, away.addr_(constant, constant, alpha=-1), ridge)

    @cached_property
    def residuals(self) -> Tensor:
        """Of the weighted regression: (n,)."""
        return self.away @ (self.root * self.side)

    @cached_property
    def weighted(self) -> Tensor:
        """The products of each row with all by their weights: (n,)."""
        return self.gram @ self.root.square()

    @property
    def coefficients(self) -> Tensor:
        """The direction as a combination of the rows: (n,). It points from the others to forget."""
        return self.root * self.residuals

    def scores_without(
        self, unseen: Tensor, rows: Tensor, others: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """1 - (coordinate - zero) / (one - zero) of some rows along the direction fitted without the unseen rows, zero
        and one the weighted means of both sides then: (rows,); and the same of keys that are no rows, (m,).

        unseen: (n,) bool, rows that have a weight; rows: (n,) bool, some of them; others: (m, n), the products of
        other keys with the rows. lambda counts with the weight of all rows.
        """
        residuals, weights = self.residuals, self.root.square()
        away = self.away[unseen]
        without = torch.linalg.solve(away[:, unseen], residuals[unseen])
        # The fit without some rows is the one in which their targets are what it predicts for them.
        missed = self.root * (residuals - without @ away)  # weight times (target - prediction)
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
        weighted = self.weighted - weights[unseen] @ self.gram[unseen]
        constant = float((seen @ self.side - weighted @ missed / self.ridge) / seen.sum())
        return found, 1 - (constant + others @ missed / self.ridge - zero) / (one - zero)
