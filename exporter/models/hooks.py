"""Hooks on a running model that give access to pre-activations, key vectors and final states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel


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
    """Call receive(layer, key vectors (batch, positions, d_ff)) at every down projection, in the order of the layers.

    `stop_after`: raise LastLayerReached after this layer's keys, before its projection is computed.
    """

    def tap(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            receive(layer, inputs[0])
            if layer == stop_after:
                raise LastLayerReached

        return hook

    core: Any = model.base_model
    handles = [layer.mlp.down_proj.register_forward_pre_hook(tap(index)) for index, layer in enumerate(core.layers)]
    with removed(handles):
        yield


@contextmanager
def pre_activation_hooks(model: PreTrainedModel, receive: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call receive(layer, pre-activations (batch, positions, d_ff)) at every gate projection, before interventions,
    which change them in place: do not keep them."""

    def tap(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, inputs, output: receive(layer, output)

    core: Any = model.base_model
    handles = [layer.mlp.gate_proj.register_forward_hook(tap(index)) for index, layer in enumerate(core.layers)]
    with removed(handles):
        yield


@contextmanager
def mlp_hooks(
    model: PreTrainedModel, receive: Callable[[int, Tensor, Tensor, Tensor, nn.Module], None]
) -> Iterator[None]:
    """Call receive(layer, pre-activations, up projections, key vectors, MLP) at every down projection.

    All (batch, positions, d_ff); only the keys are still attached to the autograd graph."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, inputs, output: seen.update({name: output.detach()})

    def tap(layer: int, mlp: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: receive(layer, seen.pop("gate"), seen.pop("up"), inputs[0], mlp)

    core: Any = model.base_model
    handles = []
    for index, layer in enumerate(core.layers):
        handles += [
            layer.mlp.gate_proj.register_forward_hook(keep("gate")),
            layer.mlp.up_proj.register_forward_hook(keep("up")),
            layer.mlp.down_proj.register_forward_pre_hook(tap(index, layer.mlp)),
        ]
    with removed(handles):
        yield


@contextmanager
def final_state_hook(model: PreTrainedModel, receive: Callable[[Tensor], None]) -> Iterator[None]:
    """Call receive(final hidden states (batch, positions, hidden)), after the norm, as the output head reads them."""
    core: Any = model.base_model
    with removed([core.norm.register_forward_hook(lambda module, inputs, output: receive(output))]):
        yield
