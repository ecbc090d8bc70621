from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.methods.neurons.statistics import NeuronMoments, floored


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 4), st.floats(-300, 300), st.integers(0, 1000))
def test_batches_with_pads_against_float64(tokens: int, batches: int, offset: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    moments, real = NeuronMoments(2), [[], []]
    for _ in range(batches):
        mask = torch.randint(2, (3, tokens), generator=generator)
        mask[0] = 1
        for layer in range(2):
            values = torch.randn(3, tokens, 7, generator=generator) * 10.0 ** torch.arange(-3, 4) + offset
            real[layer].append(values[mask.bool()].double())
            values[~mask.bool()] = torch.nan  # what pads hold is nobody's business
            moments.update(layer, values, mask)
    gaussian = moments.freeze()
    for layer in range(2):
        data = torch.cat(real[layer])
        assert gaussian.count == len(data)
        error = torch.finfo(torch.float32).eps * (abs(offset) + 10)
        assert ((gaussian.mean[layer] - data.mean(0)).abs() <= 1e-5 * data.std(0) + error).all()
        plain = data.std(0)
        same = ~floored(gaussian)[layer]
        torch.testing.assert_close(gaussian.deviation[layer][same], plain[same], rtol=1e-4, atol=error)


def test_merging_two_instances_gives_what_one_would() -> None:
    values, mask = torch.randn(10, 4), torch.ones(10)
    whole, left, right = (NeuronMoments(1) for _ in range(3))
    whole.update(0, values, mask)
    left.update(0, values[:3], mask[:3])
    right.update(0, values[3:], mask[3:])
    left.merge(right)
    torch.testing.assert_close(left.freeze().deviation, whole.freeze().deviation, rtol=1e-5, atol=1e-6)


def test_dead_neurons_are_told() -> None:
    moments = NeuronMoments(1)
    values = torch.randn(50, 6)
    values[:, 2] = 4.0
    moments.update(0, values, torch.ones(50))
    assert floored(moments.freeze()).tolist() == [[False, False, True, False, False, False]]
