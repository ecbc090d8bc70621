import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from custom_modeling.runtime import inside_hypercubes
from exporter.key_space import hypercube
from exporter.statistics import Gaussian


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 40.0), st.floats(1e-6, 1e6))
def test_bounds_are_rounded_outwards(seed: int, alpha: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(1, 32, generator=generator, dtype=torch.float64) * scale
    deviation = torch.rand(1, 32, generator=generator, dtype=torch.float64) * scale + 1e-9
    cube = hypercube(Gaussian(10, mean, deviation), 0, alpha)
    lower, upper = cube.bounds.double()
    assert (lower <= mean[0] - alpha * deviation[0]).all()
    assert (upper >= mean[0] + alpha * deviation[0]).all()
    # Outwards by no more than one float32 step.
    step = torch.finfo(torch.float32).eps * (cube.bounds.abs().double() + 1e-30)
    assert ((mean[0] - alpha * deviation[0]) - lower <= step[0]).all()
    assert (upper - (mean[0] + alpha * deviation[0]) <= step[1]).all()


def test_a_score_within_alpha_means_inside_the_stored_bounds() -> None:
    generator = torch.Generator().manual_seed(1)
    keys = Gaussian(
        50, torch.randn(2, 16, generator=generator).double(), torch.rand(2, 16, generator=generator).double() + 0.1
    )
    vectors = keys.mean[1] + 3 * keys.deviation[1] * torch.randn(2000, 16, generator=generator)
    scores = keys.scores(torch.stack([vectors, vectors], 1).float())[:, 1]
    alpha = float(scores.median())  # the middle score lies on the boundary itself
    bounds = hypercube(keys, 1, alpha).bounds[None]
    inside = inside_hypercubes(vectors.float(), bounds)
    assert 0.4 < inside.double().mean() < 0.6
    assert inside[scores <= alpha].all()
    assert not inside[scores > alpha * (1 + 1e-6)].any()
