"""Hooks on a running model that give access to pre-activations, key vectors and final states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from exporter.models.families import FUSED, MIXTURE, Form, form_of


class LastLayerReached(Exception):
    """Ends a forward whose later layers are not needed."""


@contextmanager
def removed(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Remove hooks on exit, also after an error."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def key_hooks(
    model: PreTrainedModel, receive: Callable[[int, Tensor], None], *, stop_after: int | None = None
) -> Iterator[None]:
    """Call receive(layer, key vectors (batch, positions, d_ff)) at every down projection, or before
    every mixture of experts, in the order of the layers.

    `stop_after`: raise LastLayerReached after this layer's keys, before what reads them is computed.
    """

    def tap(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            receive(layer, inputs[0])
            if layer == stop_after:
                raise LastLayerReached

        return hook

    form = form_of(model)
    readers = (mlp if form is MIXTURE else getattr(mlp, form.down) for mlp in mlps_of(model))
    handles = [reader.register_forward_pre_hook(tap(index)) for index, reader in enumerate(readers)]
    with removed(handles):
        yield


@contextmanager
def pre_activation_hooks(model: PreTrainedModel, receive: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call receive(layer, pre-activations (batch, positions, d_ff)) at every MLP, before interventions, which change
    them in place: do not keep them. Mixtures of experts have none that all tokens share."""
    form = form_of(model)
    if form is MIXTURE:
        yield
        return

    def tap(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, inputs, output: receive(layer, gate_of(output, form))

    handles = [
        getattr(mlp, form.read[0]).register_forward_hook(tap(index)) for index, mlp in enumerate(mlps_of(model))
    ]
    with removed(handles):
        yield


def gate_of(output: Tensor, form: Form) -> Tensor:
    """Pre-activations in what the first linear module of an MLP computes."""
    return output.chunk(2, -1)[0] if form is FUSED else output


def up_of(outputs: Sequence[Tensor], form: Form) -> Tensor:
    """What the activation is multiplied by, from the outputs of an MLP's linear modules: without a gate 1."""
    if form is FUSED:
        return outputs[0].chunk(2, -1)[1]
    return outputs[1] if len(outputs) > 1 else outputs[0].new_ones(())


@contextmanager
def mlp_hooks(
    model: PreTrainedModel, receive: Callable[[int, Tensor, Tensor, Tensor, nn.Module], None]
) -> Iterator[None]:
    """Call receive(layer, pre-activations, up projections, key vectors, activation function) at every down projection.

    All (batch, positions, d_ff), but for up projections () where there are none; only the keys are still attached to
    the autograd graph."""
    form = form_of(model)
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output.detach())

    def tap(layer: int, act: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            receive(layer, gate_of(seen[0], form), up_of(seen, form), inputs[0], act)
            seen.clear()

        return hook

    handles = []
    for index, mlp in enumerate(mlps_of(model)):
        handles += [getattr(mlp, name).register_forward_hook(keep) for name in form.read]
        handles.append(getattr(mlp, form.down).register_forward_pre_hook(tap(index, getattr(mlp, form.act))))
    with removed(handles):
        yield


def mlps_of(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The MLPs of a base or a checkpoint, from the first layer to the last."""
    core: Any = model.base_model
    return (layer.mlp for layer in core.layers)


@contextmanager
def final_state_hook(model: PreTrainedModel, receive: Callable[[Tensor], None]) -> Iterator[None]:
    """Call receive(final hidden states (batch, positions, hidden)), after the norm, as the output head reads them."""
    core: Any = model.base_model
    with removed([core.norm.register_forward_hook(lambda module, inputs, output: receive(output))]):
        yield
