import numpy as np
import torch
from scipy.optimize import minimize

from exporter.methods.refusal.states import max_margin


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
        direction, margin = max_margin(vectors)
        assert abs(float(direction.norm()) - 1) < 1e-5
        assert margin == float((vectors @ direction).min())
        assert margin >= 0.998 * reference_margin(vectors)


def test_margin_beats_the_mean_direction() -> None:
    vectors = torch.randn(3000, 40, generator=torch.Generator().manual_seed(1)) + 1.5
    mean = vectors.mean(0) / vectors.mean(0).norm()
    assert max_margin(vectors)[1] > float((vectors @ mean).min())


def test_no_direction_is_positive_on_a_cloud_around_the_origin() -> None:
    assert max_margin(torch.randn(500, 8, generator=torch.Generator().manual_seed(2)))[1] <= 0
