from __future__ import annotations

import math

import pytest
import torch

from exporter.methods.moments import Gaussian
from exporter.methods.neurons.attribution import Attribution
from exporter.methods.neurons.scores import (
    AGAINST,
    CHANGING,
    SCORES,
    NeuronChanges,
    SelectedNeurons,
    bhattacharyya,
    effect_size,
    magnitude_ratio,
    net_attribution,
    select,
    signed_mean,
    united,
)


def gaussian(mean: list[list[float]], deviation: list[list[float]]) -> Gaussian:
    return Gaussian(9, torch.tensor(mean).double(), torch.tensor(deviation).double())


def test_scores_in_closed_form() -> None:
    forget, retain = gaussian([[3.0, 0.0]], [[2.0, 3.0]]), gaussian([[1.0, 0.0]], [[2.0, 1.0]])
    assert signed_mean(forget, retain).tolist() == [[2.0, 0.0]]
    assert effect_size(forget, retain).tolist() == [[1.0, 0.0]]
    wanted = [4 / (8 * 4), math.log(5 / 3) / 2]
    assert bhattacharyya(forget, retain)[0].tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["effect-size", "bhattacharyya"])
def test_scale_free_scores_do_not_know_the_scale(name: str) -> None:
    means, deviations = torch.randn(2, 3, 5).double(), torch.rand(2, 3, 5).double() + 0.1
    one, other = (
        [Gaussian(9, scale * means[side], scale * deviations[side]) for side in (0, 1)] for scale in (1.0, 100.0)
    )
    torch.testing.assert_close(SCORES[name](*one), SCORES[name](*other))


def test_selection_is_over_the_whole_model_and_leaves_out_what_hardly_varies() -> None:
    deviation = torch.ones(2, 5).double()
    deviation[1, 3] = 1e-3  # where the floor puts it
    forget, retain = (Gaussian(9, torch.randn(2, 5).double(), deviation) for _ in range(2))
    scores = torch.tensor([[5.0, 1.0, 7.0, 0.0, 0.0], [0.0, 6.0, 0.0, 9.0, 0.0]])
    selected = select(scores, forget, retain, percent=30)
    assert {layer: each.index.tolist() for layer, each in selected.items()} == {0: [0, 2], 1: [1]}
    rows = forget.mean[0, [0, 2]], deviation[0, [0, 2]], retain.mean[0, [0, 2]], deviation[0, [0, 2]]
    assert torch.equal(selected[0].params, torch.stack(rows))


def test_equal_scores_take_the_first_and_a_tiny_share_takes_one() -> None:
    forget, retain = (Gaussian(9, torch.zeros(2, 4).double(), torch.ones(2, 4).double()) for _ in range(2))
    assert {k: v.index.tolist() for k, v in select(torch.ones(2, 4), forget, retain, 1e-6).items()} == {0: [0]}
    assert {k: v.index.tolist() for k, v in select(torch.ones(2, 4), forget, retain, 25).items()} == {0: [0, 1]}


def neurons(index: list[int], apart: list[float]) -> SelectedNeurons:
    """Neurons with deviations of 1 and these effect sizes."""
    mean, one = torch.tensor(apart).double(), torch.ones(len(index)).double()
    return SelectedNeurons(torch.tensor(index), torch.stack([mean, one, 0 * one, one]))


def test_a_neuron_of_two_skills_goes_to_the_one_that_parts_more() -> None:
    first = NeuronChanges({0: neurons([1, 4, 6], [1.0, 2.0, -3.0]), 2: neurons([5], [1.0])})
    second = NeuronChanges({0: neurons([2, 4, 6], [9.0, 2.5, 2.0]), 1: neurons([0], [1.0])})
    found = united([first, second])
    assert found.layers == [0, 1, 2] and found.count() == 6
    assert found.adjusted[0].index.tolist() == [1, 2, 4, 6]
    assert found.adjusted[0].params[0].tolist() == [1.0, 9.0, 2.5, -3.0]
    assert united([first]).adjusted[0].params[0].tolist() == [1.0, 2.0, -3.0]


def test_where_both_part_alike_the_first_skill_has_it() -> None:
    first, second = (NeuronChanges({0: SelectedNeurons(torch.tensor([7]), params)}) for params in (ONE, OTHER))
    assert torch.equal(united([first, second]).adjusted[0].params, ONE)
    assert torch.equal(united([second, first]).adjusted[0].params, OTHER)


ONE, OTHER = (torch.tensor([[mean + 2.0], [1.0], [mean], [1.0]]).double() for mean in (0.0, 5.0))


def test_pruned_neurons_are_united_and_stay_pruned() -> None:
    skills = [NeuronChanges(pruned={0: torch.tensor([3, 5])}), NeuronChanges(pruned={0: torch.tensor([1, 5])})]
    found = united([*skills, NeuronChanges({0: neurons([5], [1.0])})])
    assert found.pruned[0].tolist() == [1, 3, 5] and found.adjusted[0].index.tolist() == [5]


def test_no_skill_changes_nothing() -> None:
    assert united([]).layers == [] and united([]).count() == 0


def test_magnitude_ratio_of_silent_neurons_is_not_finite() -> None:
    found = magnitude_ratio(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[4.0, 0.0, 0.0]]))
    assert found[0, 0] == 0.5 and not torch.isfinite(found[0, 1:]).any()


def test_net_attribution() -> None:
    def row(*values: float) -> torch.Tensor:
        return torch.tensor([values])

    forget = Attribution(row(1.0, 1.0, 1.0), row(9.0, 9.0, 9.0), row(9.0, 9.0, 9.0))
    retain = Attribution(row(0.2, -0.2, -0.2), row(0.1, 0.05, 0.2), row(0.3, 0.3, 0.3))
    expected = [1 - 0.3 * AGAINST - 0.3 * CHANGING, 1 - 0.3 * CHANGING, 1 - 0.3 * CHANGING]
    assert net_attribution(forget, [retain])[0].tolist() == pytest.approx(expected)
    everyday = Attribution(row(0.5, -9.0, -9.0), row(0.0, 0.0, 0.0), row(0.1, 0.4, 0.1))
    expected = [1 - 0.5 * AGAINST - 0.3 * CHANGING, 1 - 0.4 * CHANGING, 1 - 0.3 * CHANGING]
    assert net_attribution(forget, [retain, everyday])[0].tolist() == pytest.approx(expected)
