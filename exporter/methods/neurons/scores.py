"""Scores of neurons, and selection of the top ones in the whole model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exporter.methods.moments import Gaussian
from exporter.methods.neurons.attribution import Attribution
from exporter.methods.neurons.statistics import floored


def signed_mean(forget: Gaussian, retain: Gaussian) -> Tensor:
    """mu_f - mu_r, the authors' score, which favours late layers with their larger activations."""
    return forget.mean - retain.mean


def effect_size(forget: Gaussian, retain: Gaussian) -> Tensor:
    """|mu_f - mu_r| in deviations: the square root of the mean of both variances."""
    return parted(forget.mean, forget.deviation, retain.mean, retain.deviation)


def bhattacharyya(forget: Gaussian, retain: Gaussian) -> Tensor:
    """Bhattacharyya distance of the two Gaussians, which also counts different deviations around one mean."""
    variance = mean_variance(forget.deviation, retain.deviation)
    apart = (forget.mean - retain.mean).square() / (8 * variance)
    return apart + (variance / (forget.deviation * retain.deviation)).log() / 2


def net_attribution(forget: Attribution, retain: Sequence[Attribution]) -> Tensor:
    """First-order rise of the loss of forget texts by moving a neuron, less a multiple of the rise that is possible on
    retain texts, and of all changes there, because those that cancel on some texts do not on others.

    The possible rise is a standard error above the mean: of many neurons, some seem harmless by chance. retain: of
    several kinds of texts, such as everyday prompts; the kind that a neuron harms most counts.
    """
    harm = torch.stack([(kind.mean + kind.error).clamp(min=0) for kind in retain]).amax(0)
    return forget.mean - AGAINST * harm - CHANGING * torch.stack([kind.magnitude for kind in retain]).amax(0)


def magnitude_ratio(forget: Tensor, retain: Tensor) -> Tensor:
    """Mean |k| over forget tokens divided by that over retain tokens, (layers, d_ff): the score of Selective Pruning,
    the paper's baseline. NaN if a neuron is silent on both sides."""
    return forget / retain


def parted(mu_f: Tensor, sd_f: Tensor, mu_r: Tensor, sd_r: Tensor) -> Tensor:
    return (mu_f - mu_r).abs() / mean_variance(sd_f, sd_r).sqrt()


def mean_variance(sd_f: Tensor, sd_r: Tensor) -> Tensor:
    return (sd_f.square() + sd_r.square()) / 2


# Weights of the harm to retain texts, and of all changes there, against the loss of forget texts.
# SmolLM2, GSM8K against MBPP and everyday prompts, 2 % of the neurons, held-out training texts, perplexity of maths,
# code, everyday: x1.71, x0.99, x0.99; harm counted once: x1.95, x1.03, x1.01; ten times, at two standard errors, and
# all of the magnitude: x1.16, x0.99, x1.00.
AGAINST, CHANGING = 3.0, 0.5

SCORES: dict[str, Callable[[Gaussian, Gaussian], Tensor]] = {
    "signed-mean": signed_mean,
    "effect-size": effect_size,
    "bhattacharyya": bhattacharyya,
}
ATTRIBUTION = "attribution"
OFFICIAL, RATIO = "signed-mean", "magnitude-ratio"
"""The scores of the authors' code and of Selective Pruning."""


@dataclass(frozen=True)
class SelectedNeurons:
    """Neurons of one layer: index (n,) int64, ascending, and params (4, n) float64, rows mu_f, sd_f, mu_r, sd_r."""

    index: Tensor
    params: Tensor

    def effect_sizes(self) -> Tensor:
        return parted(*self.params)


@dataclass(frozen=True)
class NeuronChanges:
    """Changed neurons by layer: those adjusted, and the numbers (n,) of those pruned."""

    adjusted: Mapping[int, SelectedNeurons] = field(default_factory=dict)
    pruned: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def layers(self) -> list[int]:
        return sorted({*self.adjusted, *self.pruned})

    def count(self) -> int:
        return sum(len(each.index) for each in self.adjusted.values()) + sum(map(len, self.pruned.values()))


def united(skills: Sequence[NeuronChanges]) -> NeuronChanges:
    """The changes of several skills in one model.

    A neuron can be moved between two distributions only. If two skills adjust it, it gets those of the skill whose
    forget and retain tokens it separates more, by effect size, or of the first skill if these are equal. A neuron that
    a skill prunes is zero, even if another adjusts it.
    """
    adjusted = {}
    for layer in sorted({layer for skill in skills for layer in skill.adjusted}):
        parts = [skill.adjusted[layer] for skill in skills if layer in skill.adjusted]
        index, params = torch.cat([part.index for part in parts]), torch.cat([part.params for part in parts], 1)
        strength = torch.cat([part.effect_sizes() for part in parts])
        # Two stable sorts: by neuron, and for each neuron the strongest first.
        order = strength.sort(descending=True, stable=True).indices
        order = order[index[order].sort(stable=True).indices]
        first = torch.ones(len(order), dtype=torch.bool)
        first[1:] = index[order][1:] != index[order][:-1]
        chosen = order[first]
        adjusted[layer] = SelectedNeurons(index[chosen], params[:, chosen])
    pruned = {
        layer: torch.cat([skill.pruned[layer] for skill in skills if layer in skill.pruned]).unique()
        for layer in sorted({layer for skill in skills for layer in skill.pruned})
    }
    return NeuronChanges(adjusted, pruned)


def select(scores: Tensor, forget: Gaussian, retain: Gaussian, percent: float) -> dict[int, SelectedNeurons]:
    """The top `percent` of all neurons by scores (layers, d_ff), by layer; at least one, none that hardly varies."""
    usable = ~(floored(forget) | floored(retain)) & torch.isfinite(scores)
    parts = (forget.mean, forget.deviation, retain.mean, retain.deviation)
    return {
        layer: SelectedNeurons(index, torch.stack([part[layer, index] for part in parts]))
        for layer, index in top(scores, usable, percent).items()
    }


def top(scores: Tensor, usable: Tensor, percent: float) -> dict[int, Tensor]:
    """Numbers, ascending, of the top `percent` of all neurons by scores (layers, d_ff), by layer; at least one."""
    count = min(max(1, math.floor(percent / 100 * scores.numel())), int(usable.sum()))
    ranked = scores.masked_fill(~usable, -math.inf).flatten()
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    # Sorted, not topk, to take the first of equal scores in the model, on every machine.
    chosen[ranked.sort(descending=True, stable=True).indices[:count]] = True
    layers = {layer: rows.nonzero().flatten() for layer, rows in enumerate(chosen.view_as(scores))}
    return {layer: index for layer, index in layers.items() if len(index)}
