import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from custom_modeling.key_space import inside_hypercubes
from exporter.methods.key_space.hypercubes import FIT_PER_FORMAT, KeyMoments, KeySpace
from exporter.methods.moments import Gaussian
from exporter.prompts.formats import Query
from exporter.prompts.sources import Prompt


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


def queries_and_keys(per_variant: int, variants: dict[str, int]) -> tuple[list[Query], torch.Tensor]:
    queries = [
        Query(Prompt("x", "s", 1), format_, (1,), variant)
        for format_, count in variants.items()
        for variant in range(count)
        for _ in range(per_variant)
    ]
    return queries, torch.randn(len(queries), 2, 8, generator=torch.Generator().manual_seed(4))


def gaussian_of(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return keys.double().mean(0), keys.double().std(0)


def test_moments_give_a_hypercube_for_each_format() -> None:
    queries, keys = queries_and_keys(FIT_PER_FORMAT, {"plain": 1, "system": 3})
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(5)).tolist()
    moments = KeyMoments()
    for rows in (order[:7], order[7:]):
        moments.update([queries[row] for row in rows], keys[rows])
    space = moments.key_space()
    assert space.formats == ("plain", "system")
    for gaussian, part in zip(space.gaussians, (keys[:FIT_PER_FORMAT], keys[FIT_PER_FORMAT:]), strict=True):
        mean, deviation = gaussian_of(part)
        torch.testing.assert_close(gaussian.mean, mean)
        torch.testing.assert_close(gaussian.deviation, deviation)


def test_formats_with_few_keys_share_a_hypercube() -> None:
    queries, keys = queries_and_keys(FIT_PER_FORMAT - 1, {"plain": 1, "system": 1})
    moments = KeyMoments()
    moments.update(queries, keys)
    space = moments.key_space()
    assert space.formats == ("all",)
    torch.testing.assert_close(space.gaussians[0].deviation, gaussian_of(keys)[1])


def test_an_unseen_query_is_scored_without_its_own_system_prompt() -> None:
    queries, keys = queries_and_keys(FIT_PER_FORMAT, {"plain": 1, "system": 3})
    moments = KeyMoments()
    moments.update(queries, keys)
    whole = moments.key_space()
    unseen = moments.without(Query(Prompt("y", "s", 2), "system", (1,), 1), whole)
    assert torch.equal(unseen.gaussians[0].mean, whole.gaussians[0].mean)
    system = keys[FIT_PER_FORMAT:].split(FIT_PER_FORMAT)
    torch.testing.assert_close(unseen.gaussians[1].mean, gaussian_of(torch.cat([system[0], system[2]]))[0])
    # The plain prompts are of one fold: leaving it out would leave nothing.
    assert moments.without(queries[0], whole) is whole
    assert moments.without(Query(Prompt("y", "s", 2), "system", (1,), 9), whole) is whole


def test_scores_without_the_own_fold_are_those_of_further_prompts() -> None:
    queries, keys = queries_and_keys(4, {"plain": 10})
    moments = KeyMoments()
    moments.update(queries, keys)
    further = torch.randn(4000, 2, 8, generator=torch.Generator().manual_seed(6))
    whole = moments.key_space()
    held_out = torch.stack(
        [moments.without(query, whole).scores(key) for query, key in zip(queries, keys, strict=True)]
    )
    inside, truth = whole.scores(keys), whole.scores(further).mean()
    assert inside.mean() < held_out.mean()
    assert abs(held_out.mean() - truth) < abs(inside.mean() - truth)
