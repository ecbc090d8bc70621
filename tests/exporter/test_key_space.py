import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from custom_modeling.runtime import inside_hypercubes
from exporter.key_space import KeySpace
from exporter.statistics import Gaussian


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 40.0), st.floats(1e-6, 1e6))
def test_bounds_are_rounded_outwards(seed: int, alpha: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(1, 32, generator=generator, dtype=torch.float64) * scale
    deviation = torch.rand(1, 32, generator=generator, dtype=torch.float64) * scale + 1e-9
    bounds = KeySpace(("all",), (Gaussian(10, mean, deviation),)).bounds(0, alpha)[0]
    lower, upper = bounds.double()
    assert (lower <= mean[0] - alpha * deviation[0]).all()
    assert (upper >= mean[0] + alpha * deviation[0]).all()
    # Outwards by no more than one float32 step.
    step = torch.finfo(torch.float32).eps * (bounds.abs().double() + 1e-30)
    assert ((mean[0] - alpha * deviation[0]) - lower <= step[0]).all()
    assert (upper - (mean[0] + alpha * deviation[0]) <= step[1]).all()


def two_gaussians(seed: int = 1) -> KeySpace:
    generator = torch.Generator().manual_seed(seed)

    def gaussian() -> Gaussian:
        mean = 3 * torch.randn(2, 16, generator=generator, dtype=torch.float64)
        return Gaussian(50, mean, torch.rand(2, 16, generator=generator, dtype=torch.float64) + 0.1)

    return KeySpace(("plain", "system"), (gaussian(), gaussian()))


def test_a_score_within_alpha_means_inside_the_stored_bounds() -> None:
    keys = two_gaussians()
    generator = torch.Generator().manual_seed(2)
    vectors = torch.cat(
        [
            fit.mean[1] + 3 * fit.deviation[1] * torch.randn(1000, 16, generator=generator, dtype=torch.float64)
            for fit in keys.gaussians
        ]
    ).float()
    scores = keys.scores(torch.stack([vectors, vectors], 1))[:, 1]
    alpha = float(scores.median())  # the middle score lies on the boundary itself
    inside = inside_hypercubes(vectors, keys.bounds(1, alpha))
    assert 0.4 < inside.double().mean() < 0.6
    assert inside[:1000].any() and inside[1000:].any()
    assert inside[scores <= alpha].all()
    assert not inside[scores > alpha * (1 + 1e-6)].any()


def test_float32_scorer_agrees_with_the_scores() -> None:
    keys = two_gaussians()
    vectors = 4 * torch.randn(300, 2, 16, generator=torch.Generator().manual_seed(3))
    score = keys.scorer(torch.device("cpu"))
    fast = torch.stack([score(layer, vectors[:, layer]) for layer in range(2)], 1)
    torch.testing.assert_close(fast, keys.scores(vectors), rtol=1e-5, atol=0)
