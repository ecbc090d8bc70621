"""The warning of skills that share neurons."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from exporter.checkpoint.summary import SharedLayer, SharedSummary
from exporter.methods.neurons.scores import NeuronChanges, SelectedNeurons
from exporter.methods.outcome import SkillOutcome
from exporter.pipeline.outcome_warnings import many_shared, shared_neurons
from exporter.recipes.settings import SkillSettings
from tests.exporter.pipeline.test_outcome_warnings import SKILL


def outcome(name: str, changes: NeuronChanges, layers: int = 4, width: int = 100) -> SkillOutcome:
    gaussian = SimpleNamespace(mean=torch.zeros(layers, width))
    neurons = SimpleNamespace(changes=changes, forget=SimpleNamespace(gaussian=gaussian))
    plan = SimpleNamespace(skill=SkillSettings(("f",), ("r",), name=name, method="na"))
    return SkillOutcome(cast("Any", plan), cast("Any", neurons))


def adjusted(layers: dict[int, range]) -> NeuronChanges:
    return NeuronChanges(
        {layer: SelectedNeurons(torch.tensor(list(rows)), torch.zeros(4, len(rows))) for layer, rows in layers.items()}
    )


def shared(one: NeuronChanges, other: NeuronChanges) -> tuple[SharedSummary, float]:
    (found,) = shared_neurons([outcome("sums", one), outcome("news", other)])
    return found


def test_shared_neurons_by_layer() -> None:
    one = adjusted({0: range(10), 2: range(20, 40)})
    other = NeuronChanges(adjusted({2: range(30, 35), 3: range(5)}).adjusted, {0: torch.tensor([3, 50])})
    found, chance = shared(one, other)
    assert found.layers == {
        "0": SharedLayer(shared=1, smaller=2, share=0.5),
        "2": SharedLayer(shared=5, smaller=5, share=1.0),
        "3": SharedLayer(shared=0, smaller=0, share=0.0),
    }
    assert (found.shared, found.smaller, found.by_chance) == (6, 12, 30 * 12 / 400)
    caution = many_shared(found, chance)
    assert caution is not None and "sums and news share 6 neurons, 50% of the smaller set's 12" in caution.message


@pytest.mark.parametrize(
    ("one", "other", "fires"),
    [
        ({0: range(40)}, {0: range(30, 70)}, True),  # 10 of 40, and 4 by chance
        ({0: range(40)}, {0: range(31, 71)}, False),  # 9 of 40
        ({0: range(40)}, {1: range(40)}, False),
        # Of half of all neurons and another half every second is shared by chance.
        ({0: range(100), 1: range(100)}, {1: range(100), 2: range(100)}, False),
        ({0: range(1)}, {0: range(1)}, True),
    ],
)
def test_a_quarter_and_more_than_chance(one: dict[int, range], other: dict[int, range], fires: bool) -> None:
    assert (many_shared(*shared(adjusted(one), adjusted(other))) is not None) is fires


def test_skills_without_neurons_share_none() -> None:
    alone = SkillOutcome(cast("Any", SimpleNamespace(skill=SKILL)))
    assert shared_neurons([alone, outcome("sums", adjusted({0: range(3)}))]) == []
