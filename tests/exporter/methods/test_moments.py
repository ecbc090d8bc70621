import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.methods.moments import DEVIATION_FLOOR, Moments


def moments_of(*batches: torch.Tensor) -> Moments:
    moments = Moments()
    for batch in batches:
        moments.update(batch)
    return moments


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=2, max_size=6), st.floats(-1e4, 1e4), st.integers(0, 1000))
def test_batches_give_what_the_whole_gives(sizes: list[int], offset: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(sum(sizes), 2, 5, generator=generator, dtype=torch.float64) + offset
    gaussian = moments_of(*data.split(sizes)).freeze()
    assert gaussian.count == len(data)
    torch.testing.assert_close(gaussian.mean, data.mean(0), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(gaussian.deviation, data.std(0), rtol=1e-8, atol=1e-9)


def test_merging_two_instances_gives_what_one_would() -> None:
    data = torch.randn(11, 1, 4) * 3 + 100
    left, right = moments_of(data[:4]), moments_of(data[4:])
    left.merge(right)
    whole = moments_of(data).freeze()
    torch.testing.assert_close(left.freeze().deviation, whole.deviation, rtol=1e-12, atol=1e-12)
    empty = Moments()
    empty.merge(left)
    torch.testing.assert_close(empty.freeze().mean, whole.mean, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(2, 9), st.floats(-1e4, 1e4), st.integers(0, 1000))
def test_less_undoes_a_merge(part: int, rest: int, offset: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(part + rest, 2, 5, generator=generator, dtype=torch.float64)
    data[:part] += offset
    whole, taken = moments_of(data), moments_of(data[:part])
    left = whole.less(taken).freeze()
    assert left.count == rest
    torch.testing.assert_close(left.mean, data[part:].mean(0), rtol=1e-9, atol=1e-9)
    # The squares of the whole hold offset^2, of which a double keeps 16 digits.
    torch.testing.assert_close(left.deviation, data[part:].std(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(whole.freeze().mean, moments_of(data).freeze().mean)


def test_a_large_mean_does_not_cancel_the_deviation() -> None:
    values = torch.tensor([1e6, 1e6 + 1, 1e6 + 2], dtype=torch.float64).view(3, 1, 1)
    assert moments_of(values[:1], values[1:]).freeze().deviation.item() == pytest.approx(1.0, abs=1e-9)


def test_dead_dimensions_get_the_floor_of_their_layer() -> None:
    data = torch.randn(50, 2, 5)
    data[:, 1] *= 100
    data[:, :, 0] = 7.0
    gaussian = moments_of(data).freeze()
    plain = data.double().std(0)
    torch.testing.assert_close(gaussian.deviation[:, 0], DEVIATION_FLOOR * plain.median(-1).values, rtol=1e-12, atol=0)
    torch.testing.assert_close(gaussian.deviation[:, 1:], plain[:, 1:], rtol=1e-12, atol=0)


def test_score_is_the_largest_standardised_deviation() -> None:
    data = torch.randn(40, 3, 6)
    gaussian = moments_of(data).freeze()
    vectors = torch.randn(5, 3, 6)
    expected = torch.stack([((v.double() - gaussian.mean) / gaussian.deviation).abs().max(-1).values for v in vectors])
    assert torch.equal(gaussian.scores(vectors), expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.randn(1, 1, 3), "at least 2"),
        (torch.tensor([[[1.0, float("nan"), 2.0]], [[1.0, 2.0, 3.0]]]), "NaN"),
        (torch.ones(4, 1, 3), "never vary"),
    ],
)
def test_statistics_that_cannot_be_are_refused(data: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moments_of(data).freeze()
