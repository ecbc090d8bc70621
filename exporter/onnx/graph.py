"""A loaded checkpoint as an ONNX graph: from token ids, mask, positions and cache to logits and cache."""

from __future__ import annotations

import ctypes
import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from onnx_ir import passes
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from torch import Tensor
from transformers import DynamicCache

from custom_modeling.buffers import is_unskill
from exporter.common.errors import RunFailed, first_line
from exporter.onnx.operators import OPSET, functions
from exporter.onnx.symbolic import operators_for

INPUTS = ("input_ids", "attention_mask", "position_ids")
# Sizes to trace with: all different, and none of them 1, which would become a constant.
BATCH, TOKENS, PAST = 2, 3, 5
M_MMAP_THRESHOLD, LARGE = -3, 1 << 20  # the option in glibc's malloc.h; bytes
DATA_SUFFIX = "_data"
"""What transformers.js appends to a graph's file name for the name of its weights."""


def weights_of(graph: Path) -> Path:
    """The file of a graph's weights."""
    return graph.with_name(graph.name + DATA_SUFFIX)


class WithFlatCache(torch.nn.Module):
    """A causal language model whose cache is a list: key of layer 0, value of layer 0, key of layer 1, ..."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        # Without the config: layers with a sliding window keep the whole cache too, and the mask applies the window.
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        layers = output.past_key_values.layers
        return output.logits, *(part for layer in layers for part in (layer.keys, layer.values))


def cache_names(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def cache_shape(config: Any) -> tuple[int, int]:
    """The number of heads in the cache, and their size."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_key_value_heads, size


def write_graph(model: Any, path: Path) -> None:
    """Trace a checkpoint or a plain model on the CPU; write `path` (the graph) and `path`_data (its weights).

    The graph's inputs are INPUTS and past_key_values.N.key|value (batch, heads, past, size), its outputs logits
    (batch, positions, vocabulary) and present.N.key|value.

    Raises RunFailed where torch cannot trace the model.
    """
    config = model.config
    layers = config.num_hidden_layers
    heads, size = cache_shape(config)
    past = [torch.zeros(BATCH, heads, PAST, size, dtype=model.dtype) for _ in range(2 * layers)]
    ids = torch.zeros(BATCH, TOKENS, dtype=torch.int64)
    mask = torch.ones(BATCH, PAST + TOKENS, dtype=torch.int64)
    positions = (torch.arange(TOKENS) + PAST).expand(BATCH, -1).contiguous()
    batch, tokens, before = map(torch.export.Dim, ("batch_size", "sequence_length", "past_sequence_length"))
    shapes = {
        "input_ids": {0: batch, 1: tokens},
        "attention_mask": {0: batch, 1: torch.export.Dim.DYNAMIC},
        "position_ids": {0: batch, 1: tokens},
        "past": [{0: batch, 2: before}] * (2 * layers),
    }
    edited = operators_for(model) if hasattr(config, "unskill") else nullcontext()
    with edited, traceable_experts(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # by torch, about its own code
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                WithFlatCache(model),
                (ids, mask, positions, past),
                dynamo=True,
                verbose=False,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                optimize=False,
                input_names=[*INPUTS, *cache_names("past_key_values", layers)],
                output_names=["logits", *cache_names("present", layers)],
            )
        except torch.onnx.OnnxExporterError as error:
            raise RunFailed(f"torch cannot export this model to ONNX: {first_line(error)}") from error
        assert program is not None
        simplify(program.model)
        onnx_ir.save(program.model, path, external_data=weights_of(path).name)
    # The trace is full of reference cycles, and would stay in memory beside the copies that `finish` makes.
    del program
    gc.collect()
    finish(path)


@contextmanager
def traceable_experts(model: Any) -> Iterator[None]:
    """Have a mixture gather the weights of each token's experts; other ways have shapes that hang on the tokens."""
    usual = getattr(model.config, "_experts_implementation", None)
    if usual is None:
        yield
        return
    model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        model.set_experts_implementation(usual)


def simplify(model: onnx_ir.Model) -> None:
    """Fold constants, and drop unused and duplicate nodes and initializers, in place.

    Torch's own `optimize` does this too, but also applies rewrite rules: one compares each Slice with all others and
    took a third of the whole export of 30 layers, another drops an epsilon of 1e-8. Nearly all that they find, ONNX
    Runtime finds itself when it loads the graph. Parts of the interventions' constants are not folded, so that each
    constant is in the graph whole, under its name (see `exporter.onnx.surgery`).
    """
    fold_constants(model, onnx_shape_inference=True, should_fold=lambda node: False if reads_ours(node) else None)
    passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def reads_ours(node: onnx_ir.Node) -> bool:
    """Whether a node reads a constant of an intervention."""
    return any(value is not None and value.name is not None and is_unskill(value.name) for value in node.inputs)


def return_freed_memory() -> None:
    """From here on memory of a MiB or more goes back to the system as soon as it is freed, where malloc is glibc's.

    By default glibc raises that size to the largest block that was freed, up to 32 MiB. The weights of a session, or
    the remains of a trace, come in smaller blocks: they would stay in the heap, and the next copy would come on top.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)


def release_weights(model: Any) -> None:
    """Free the weights of a model that is no longer used.

    Otherwise a tied embedding would stay in memory after `write_graph`, and with it the mapped file.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)


def check_data(path: Path) -> None:
    """Raises RunFailed, in one line, where a graph cannot be read, or its weights are missing or cut off."""
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError as error:
        raise RunFailed(f"{path.name} is no ONNX graph ({first_line(error)})") from error
    needed: dict[str, int] = {}
    for info in map(ExternalDataInfo, filter(uses_external_data, graph.initializer)):
        needed[info.location] = max(needed.get(info.location, 0), (info.offset or 0) + (info.length or 0))
    for name, size in needed.items():
        data = path.with_name(name)
        if not data.is_file():
            raise RunFailed(f"{path}: its weights are missing: {name} belongs beside it")
        if data.stat().st_size < size:
            raise RunFailed(f"{path}: {name} is cut off: {data.stat().st_size} of {size} bytes are there")


def finish(path: Path) -> None:
    """Give operators their bodies and the mask's second axis its name, and drop what names files of this machine.

    The weights are not read: there may be more of them than one protobuf message holds.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    given = next(each for each in graph.input if each.name == "attention_mask")
    unnamed = given.type.tensor_type.shape.dim[1].dim_param
    for value in (*graph.input, *graph.value_info, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == unnamed:
                dimension.dim_param = "total_sequence_length"
    # Where each node comes from in the sources of torch and transformers.
    for each in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        each.ClearField("metadata_props")
        each.ClearField("doc_string")
    used = {node.op_type for node in graph.node if node.domain}
    model.functions.extend(each for each in functions() if each.name in used)
    onnx.save(model, path)
    onnx.checker.check_model(path)
