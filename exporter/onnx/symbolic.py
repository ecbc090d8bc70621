"""The interventions as operators: during a trace the runtime emits nodes of `ai.unskill` instead of torch's.

`exporter.onnx.operators` and `exporter/onnx/kernels` define what a node computes, as a function of standard operators
and as a kernel; both are tested against the runtime.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, reduce
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from custom_modeling.key_space import FORBIDDEN, SECOND
from custom_modeling.neuron_adjust import standardisers
from exporter.onnx.operators import DOMAIN, KEY_SPACE_DETECT, NEURON_ADJUST, NEURON_DRAWS, REGION_DETECT, VERSION


def emit(name: str, inputs: Sequence[Tensor], dtype: torch.dtype, shape: Sequence[Any]) -> Tensor:
    """A node of our domain, opaque to torch."""
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{name}", tuple(inputs), dtype=dtype, shape=shape, version=VERSION)


class Constants(torch.nn.Module):
    """What the operators read besides activations, computed once by torch, in float32.

    standardisers: by layer, (6, n); least, keys: of all layers in their order, (N,) float32 and int64. See
    `custom_modeling.neuron_adjust`.
    """

    least: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.layers = model.unskill_layers["adjusted"]
        mlps = [model.layers[layer].mlp for layer in self.layers]
        self.sizes = [mlp.unskill_adjusted for mlp in mlps]
        params = {layer: mlp.unskill_na_params for layer, mlp in zip(self.layers, mlps, strict=True)}
        for name, tensor in constants_of(params).items():
            self.register_buffer(name, tensor)
        self.keys = torch.nn.Buffer(torch.cat([mlp.unskill_na_key for mlp in mlps]))

    def hand_out(self, input_ids: Tensor, position_ids: Tensor, sampled: bool) -> dict[int, Any]:
        """For each adjusted layer the threshold (batch, positions, n) and the standardisers of its neurons."""
        above = self.least
        if sampled:
            shape = (*input_ids.shape, len(self.keys))
            draws = emit(NEURON_DRAWS, (position_ids, input_ids, self.keys), torch.float32, shape)
            above = 2 * (draws / (1 - draws)).log().clamp(min=0) + self.least
        # Position 0 is never moved, see `thresholds`.
        above = torch.where(position_ids.unsqueeze(-1) == 0, torch.inf, above)
        parts = zip(self.layers, above.split(self.sizes, -1), strict=True)
        return {layer: (part, getattr(self, f"standardisers_{layer}")) for layer, part in parts}


def constants_of(params: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """The distributions as `Constants` has them. params: by layer, in order, (4, n) float32, see `thresholds`."""
    found = {f"standardisers_{layer}": torch.stack(standardisers(each)) for layer, each in params.items()}
    every = torch.cat(list(params.values()), -1)
    return found | {"least": 2 * (every[1].log() - every[3].log())}


@contextmanager
def operators_for(causal_lm: Any) -> Iterator[None]:
    """While this runs, a forward of the loaded checkpoint can be traced for export, and be used for nothing else."""
    model, settings = causal_lm.model, causal_lm.config.unskill
    runtime = sys.modules[type(causal_lm).__module__]
    with ExitStack() as stack:
        ours: Any = {"adjust": adjust, "inside_hypercubes": inside_hypercubes, "rewrite_logits": rewrite_logits}
        if hasattr(runtime, "inside_regions"):  # format 1 has none
            ours["inside_regions"] = inside_regions
        if not hasattr(runtime, "SECOND"):  # older checkpoints have no second choice at a blocked position
            ours["rewrite_logits"] = partial(rewrite_logits, second=FORBIDDEN)
        stack.enter_context(mock.patch.multiple(runtime, **ours))
        stack.callback(share, model)
        if model.unskill_layers["adjusted"]:
            constants = Constants(model)

            def hand_out(input_ids: Any = None, position_ids: Any = None, **others: Any) -> None:
                sampled = settings["draws"] == "sampled"
                model.unskill_handed.update(constants.hand_out(input_ids, position_ids, sampled))

            model.unskill_constants = constants
            stack.callback(delattr, model, "unskill_constants")
            stack.enter_context(mock.patch.object(model, "unskill_hand_out", hand_out))
        # The head's logits at blocked positions are overwritten, so it needs no states of the refusal.
        stack.enter_context(mock.patch.object(model, "unskill_refusal", None))
        yield


def share(model: Any) -> None:
    """Give the MLPs the model's own dict again: tracing replaces what changes by copies."""
    model.unskill_handed = {}
    for layer in model.unskill_layers["adjusted"]:
        model.layers[layer].mlp.unskill_handed = model.unskill_handed


def adjust(pre_activation: Tensor, index: Tensor, threshold: Tensor, standard: Tensor) -> Tensor:
    inputs = (pre_activation.float(), index, threshold, standard)
    return emit(NEURON_ADJUST, inputs, torch.float32, pre_activation.shape).to(pre_activation.dtype)


def inside_hypercubes(key: Tensor, bounds: Tensor) -> Tensor:
    return emit(KEY_SPACE_DETECT, (key.float(), bounds), torch.bool, key.shape[:-1])


def inside_regions(key: Tensor, directions: Tensor, limits: Tensor, bounds: Tensor | None = None) -> Tensor:
    if bounds is None:
        return emit(REGION_DETECT, (key.float(), directions, limits), torch.bool, key.shape[:-1])
    # Of one region at a time, whose bounds and limits must both hold the key.
    each = [slice(place, place + 1) for place in range(len(bounds))]
    hits = [inside_regions(key, directions, limits[one]) & inside_hypercubes(key, bounds[one]) for one in each]
    return reduce(torch.logical_or, hits)


def rewrite_logits(
    logits: Tensor, hit: Tensor, after_refusal: Tensor, refusal_id: int, eos_id: int, second: float = SECOND
) -> Tensor:
    """As `custom_modeling.key_space.rewrite_logits`, without writing into a tensor. second: of EOS after a hit."""
    zero = torch.zeros((), dtype=logits.dtype)
    refusal = torch.where(after_refusal, zero + SECOND, torch.where(hit, zero, zero + FORBIDDEN))
    blocked = (hit | after_refusal).unsqueeze(-1)
    others = torch.where(blocked, zero + FORBIDDEN, logits)
    eos = torch.where(after_refusal, zero, torch.where(hit, zero + second, others[..., eos_id]))
    columns = {refusal_id: refusal.unsqueeze(-1), eos_id: eos.unsqueeze(-1)}
    parts, start = [], 0
    for column in sorted(columns):
        parts += [others[..., start:column], columns[column]]
        start = column + 1
    return torch.cat([*parts, others[..., start:]], -1)
