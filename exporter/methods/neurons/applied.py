"""Neurons changed in the loaded model by the checkpoint's own runtime, so that what is measured is what users get."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from custom_modeling.buffers import NA_INDEX, NA_KEY, NA_PARAMS, SP_INDEX, UNSKILL, in_mlp
from custom_modeling.neuron_adjust import neuron_key
from custom_modeling.runtime import InterventionModel, argument_names
from exporter.methods.neurons.scores import NeuronChanges, SelectedNeurons
from exporter.models.families import intervention_class
from exporter.models.loading import LoadedModel


def neuron_buffers(changes: NeuronChanges, seed: int, compat: str | None) -> dict[str, Tensor]:
    """The buffers of adjusted and pruned neurons, by their names inside the base model."""
    buffers: dict[str, Tensor] = {}
    for layer, neurons in changes.adjusted.items():
        keys = [neuron_key(seed, layer, neuron) for neuron in neurons.index.tolist()]
        buffers |= {
            in_mlp(layer, NA_INDEX): neurons.index,
            in_mlp(layer, NA_PARAMS): as_compat(neurons, compat).float(),
            in_mlp(layer, NA_KEY): torch.tensor(keys),
        }
    return buffers | {in_mlp(layer, SP_INDEX): index for layer, index in changes.pruned.items()}


def as_compat(neurons: SelectedNeurons, compat: str | None) -> Tensor:
    """Parameters (4, n); with compat "official" those of the authors' code, see `adjust_official`."""
    if compat is None:
        return neurons.params
    mu_f, _, mu_r, sd_r = neurons.params
    return torch.stack([mu_f, mu_f, mu_r, sd_r.square()])


def layer_counts(changes: NeuronChanges) -> dict[str, dict[str, int]]:
    """How many neurons are changed in each layer, in the form of config.json."""
    counts: dict[str, dict[str, int]] = {str(layer): {} for layer in changes.layers}
    for layer, neurons in changes.adjusted.items():
        counts[str(layer)]["adjusted"] = len(neurons.index)
    for layer, index in changes.pruned.items():
        counts[str(layer)]["pruned"] = len(index)
    return counts


@contextmanager
def changed(
    loaded: LoadedModel, changes: NeuronChanges, seed: int, draws: str = "sampled", compat: str | None = None
) -> Iterator[None]:
    """Change these neurons in the model, and restore it on exit, also after an error.

    For measuring only: `loaded.files` stay unchanged.
    """
    if not changes.layers:
        yield
        return
    family = loaded.family
    core: Any = loaded.model.base_model

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.unskill_forward(super(model_class, self).forward, args, kwargs)

    model_class: Any = type(
        family.model.__name__,
        (InterventionModel, family.model),
        {
            "unskill_mlp_classes": {mlp: intervention_class(mlp, family.form) for mlp in family.mlps},
            "unskill_arguments": argument_names(vars(family.model)["forward"]),
            "forward": forward,
        },
    )
    config: Any = loaded.model.config
    classes = {layer: type(core.layers[layer].mlp) for layer in changes.layers}
    try:
        config.unskill = {
            "draws": draws,
            "compat": compat,
            "base_model": "closed",
            "layers": layer_counts(changes),
        }
        core.__class__ = model_class
        with loaded.device:
            core.unskill_install(config, alone=False)
        core.unskill_settled = True  # nothing was loaded
        buffers = dict(core.named_buffers())
        for name, tensor in neuron_buffers(changes, seed, compat).items():
            buffers[name].copy_(tensor)
        yield
    finally:
        core.__class__ = family.model
        for layer in changes.layers:
            core.layers[layer].mlp.__class__ = classes[layer]
        for module in (core, *(core.layers[layer].mlp for layer in changes.layers)):
            for held in (vars(module), module._buffers):
                for name in [name for name in held if name.startswith(UNSKILL)]:
                    del held[name]
        del config.unskill
