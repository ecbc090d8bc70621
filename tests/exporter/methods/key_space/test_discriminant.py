"""The discriminant in sample space against its closed form in the key space."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exporter.methods.key_space.discriminant import Discriminant, Rows


def sides(rows: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated keys of two sides, which side, and weights."""
    torch.manual_seed(seed)
    keys = torch.randn(rows, size).double() @ torch.randn(size, size).double() + torch.randn(size).double()
    forget = torch.arange(rows) % 3 == 0
    keys[forget] += 0.7
    return keys, forget, torch.rand(rows).double() + 0.1


def unit(direction: Tensor) -> Tensor:
    return direction / direction.norm()


def closed_form(rows: Tensor, forget: Tensor, weights: Tensor, shrinkage: float) -> Tensor:
    """(C + lambda I)^-1 (mean of forget - mean of others), solved in d dimensions."""
    means = [(weights[side, None] * rows[side]).sum(0) / weights[side].sum() for side in (forget, ~forget)]
    centred = torch.where(forget[:, None], rows - means[0], rows - means[1]) * weights.sqrt()[:, None]
    within = centred.T @ centred / weights.sum()
    return torch.linalg.solve(within + shrinkage * torch.eye(rows.shape[1]).double(), means[0] - means[1])


@given(
    rows=st.integers(6, 40), size=st.integers(1, 40), shrinkage=st.sampled_from([0.3, 1.0, 3.0]), at_hand=st.booleans()
)
def test_it_is_the_shrunk_linear_discriminant(rows: int, size: int, shrinkage: float, at_hand: bool) -> None:
    keys, forget, weights = sides(rows, size)
    found = Rows.of(keys)
    fitted = Discriminant.of(found.gram, forget, weights, shrinkage, found.rows if at_hand else None)
    ours = found.rows.T @ fitted.coefficients
    torch.testing.assert_close(unit(ours), unit(closed_form(found.rows, forget, weights, shrinkage)))


def test_rows_without_weight_are_left_out() -> None:
    keys, forget, weights = sides(30, 12)
    found = Rows.of(keys)
    weights[5:9] = 0
    kept = weights > 0
    ours = found.rows.T @ Discriminant.of(found.gram, forget, weights).coefficients
    torch.testing.assert_close(unit(ours), unit(closed_form(found.rows[kept], forget[kept], weights[kept], 1.0)))


@given(
    rows=st.integers(12, 40),
    size=st.integers(1, 40),
    shrinkage=st.sampled_from([0.1, 1.0, 3.0]),
    none=st.booleans(),
    at_hand=st.booleans(),
)
def test_scores_without_some_rows_are_those_of_a_fit_without_them(
    rows: int, size: int, shrinkage: float, none: bool, at_hand: bool
) -> None:
    keys, forget, weights = sides(rows, size)
    found, others = Rows.of(keys), torch.randn(7, size)
    unseen = (torch.arange(rows) % 4 == 1) & (not none)
    held = unseen & (torch.arange(rows) % 8 == 1)
    fitted = Discriminant.of(found.gram, forget, weights, shrinkage, found.rows if at_hand else None)
    scores, more = fitted.scores_without(unseen, held, found.products(others))
    seen = ~unseen
    # The same lambda counts more beside a smaller weight.
    stronger = shrinkage * float(weights.sum() / weights[seen].sum())
    direction = closed_form(found.rows[seen], forget[seen], weights[seen], stronger)
    along = found.rows @ direction
    one, zero = (
        float((weights * along)[side].sum() / weights[side].sum()) for side in (forget & seen, ~forget & seen)
    )
    torch.testing.assert_close(scores, (1 - (along - zero) / (one - zero))[held])
    beside = (others.double() - found.centre) / found.scale @ direction
    assert more is not None
    torch.testing.assert_close(more, 1 - (beside - zero) / (one - zero))


def test_the_direction_in_the_key_space() -> None:
    keys, forget, weights = sides(30, 12)
    rows = Rows.of(keys)
    coefficients = Discriminant.of(rows.gram, forget, weights).coefficients
    # Coordinates of keys and of standardised rows differ by a constant.
    apart = keys @ rows.direction(coefficients) - rows.gram @ coefficients
    torch.testing.assert_close(apart, apart.mean().expand(30))


def test_dimensions_that_never_vary_do_no_harm() -> None:
    keys, forget, weights = sides(30, 12)
    keys[:, 4] = 3.0
    rows = Rows.of(keys)
    direction = rows.direction(Discriminant.of(rows.gram, forget, weights).coefficients)
    assert direction.isfinite().all()
    # What does not vary says nothing, whatever a later key has there.
    assert float(direction[4].abs()) == pytest.approx(0, abs=1e-9)
