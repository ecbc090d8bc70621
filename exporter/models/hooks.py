"""Taps: hooks on a model that hand out pre-activations, key vectors and final states while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel


class LastLayerReached(Exception):
    """Ends a forward whose later layers nobody needs."""


@contextmanager
def removed(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Remove hooks afterwards, whatever happens."""
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

    `stop_after`: raise LastLayerReached once that layer has been received, before its projection is computed.
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
    """Call receive(layer, pre-activations (batch, positions, d_ff)) at every gate projection, before anything changes
    them. They may be changed in place afterwards: not to be kept."""

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
    """Call receive(layer, pre-activations, up projections, key vectors, MLP), (batch, positions, d_ff) each, at every
    down projection. Only the keys are still attached to the graph."""
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
    """Call receive(final hidden states (batch, positions, hidden)), normed: what the output head reads."""
    core: Any = model.base_model
    handle = core.norm.register_forward_hook(lambda module, inputs, output: receive(output))
    try:
        yield
    finally:
        handle.remove()
