from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from exporter.methods.refusal import head as refusal_head
from exporter.methods.refusal.head import LEAD, Differences, Directions, above_others, max_margin


def rows_of(vectors: torch.Tensor) -> Differences:
    """The vectors themselves."""
    return Differences(torch.zeros(vectors.shape[1]), [-vectors])


def reference_margin(vectors: torch.Tensor) -> float:
    """The same margin by a general solver: min |x|^2 where vectors @ x >= 1 has |x| = 1 / margin."""
    rows = vectors.double().numpy()
    start = rows.mean(0)
    solved = minimize(
        lambda x: x @ x,
        start,
        jac=lambda x: 2 * x,
        constraints={"type": "ineq", "fun": lambda x: rows @ x - 1, "jac": lambda x: rows},
        method="SLSQP",
        options={"maxiter": 500},
    )
    return float(1 / np.linalg.norm(solved.x))


def test_margin_is_that_of_a_general_solver() -> None:
    generator = torch.Generator().manual_seed(0)
    for offset in (2.0, 3.0):
        vectors = torch.randn(800, 12, generator=generator) + offset
        direction, margin = max_margin(rows_of(vectors))
        assert abs(float(direction.norm()) - 1) < 1e-5
        assert margin == float((vectors @ direction).min())
        assert margin >= 0.998 * reference_margin(vectors)


def test_margin_beats_the_mean_direction() -> None:
    vectors = torch.randn(3000, 40, generator=torch.Generator().manual_seed(1)) + 1.5
    mean = vectors.mean(0) / vectors.mean(0).norm()
    assert max_margin(rows_of(vectors))[1] > float((vectors @ mean).min())


def test_no_direction_is_positive_on_a_cloud_around_the_origin() -> None:
    assert max_margin(rows_of(torch.randn(500, 8, generator=torch.Generator().manual_seed(2))))[1] <= 0


HEAD = torch.randn(5000, 24, generator=torch.Generator().manual_seed(3)) / 5
AWAY, EOS = torch.nn.functional.normalize(torch.randn(24, generator=torch.Generator().manual_seed(4)), dim=0), 1234
HEAD[EOS] *= 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_margin_over_a_head_in_chunks_is_the_direct_one(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    head = HEAD.to(dtype)
    whole = head.float()
    others = whole[EOS] - torch.cat([whole[:EOS], whole[EOS + 1 :]])
    direct = max_margin(rows_of(others - torch.outer(others @ AWAY, AWAY)))
    monkeypatch.setattr(refusal_head, "ROWS_AT_ONCE", 300)
    direction, margin = max_margin(above_others(head, AWAY, EOS))
    assert margin == pytest.approx(direct[1], rel=1e-4) and margin > 0
    torch.testing.assert_close(direction, direct[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("typical", [0.5, 20.0])
def test_states_order_the_choices(typical: float, second: bool) -> None:
    """By the closed forms alone: each choice leads the next by LEAD, whatever the length of a final state."""
    end, margin = max_margin(above_others(HEAD, AWAY, EOS))
    assert margin > 0 and abs(float(end @ AWAY)) < 1e-5
    row, states = Directions.of(HEAD, AWAY, end, EOS, typical).states(LEAD, second)
    blocked, after = states.double() @ torch.cat([HEAD, row[None]]).double().T
    refusal, tolerance = len(HEAD), 0.1
    others = [place for place in range(len(HEAD)) if place != EOS]
    assert blocked[refusal] - blocked[:refusal].max() >= LEAD - tolerance
    assert after[EOS] - after[refusal] >= LEAD - tolerance and after[EOS] - after[others].max() >= LEAD - tolerance
    if second:
        assert blocked[EOS] - blocked[others].max() >= LEAD - tolerance
        assert after[refusal] - after[others].max() >= LEAD - tolerance
    torch.testing.assert_close(row / row.norm(), AWAY)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest new tensor has; views are of no size of their own."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        before = {each.untyped_storage().data_ptr() for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)}
        for each in tree_leaves(found):
            if torch.is_tensor(each) and each.untyped_storage().data_ptr() not in before:
                self.numbers = max(self.numbers, each.numel())
        return found


def test_no_copy_of_the_head_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal_head, "ROWS_AT_ONCE", 300)
    head = HEAD.bfloat16()
    with Largest() as largest:
        max_margin(above_others(head, AWAY, EOS))
    # A chunk, the violated rows or a product for each row: each far below the 120,000 numbers of the head.
    assert 5000 < largest.numbers <= 2 * refusal_head.ACTIVE * 24
