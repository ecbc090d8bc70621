"""Quantizing a graph file: the weights of the decoder layers' projections to int8 or int4, and nothing else.

What stays as it was, in float32:

- The operators `ai.unskill::*` with their bodies, and all that they read. Their constants are in the graph's own
  file, not among the weights, so that refitting leaves the weights' file as it was probed.
- The output head. Key vectors do not depend on it, so quantizing it would lose no refusal. But in most small models it
  is tied to the embedding, which is looked up in float32, so a quantized copy would make the file larger; and it
  decides every token of an answer.
- Products of two activations, as in attention.
"""

from __future__ import annotations

import logging
import stat
from pathlib import Path
from unittest import mock

import onnx
from onnx.external_data_helper import convert_model_to_external_data

from exporter.common.errors import RunFailed
from exporter.onnx.graph import weights_of
from exporter.onnx.operators import DOMAIN

BLOCK = 32
"""Inputs of a weight that share a scale."""
BITS = {"int8": 8, "int4": 4}


def quantize(source: Path, target: Path, kind: str) -> int:
    """Write the float32 graph at `source` (see `write_graph`) with quantized weights to `target` and `target`_data.

    kind: "int8" or "int4", symmetric, in blocks; activations stay float32. Weights may be larger than one protobuf
    message holds, so they are a file of their own.

    Returns:
        How many weights were quantized.

    Raises:
        RunFailed: There is no weight to quantize.
    """
    graph = onnx.load(source, load_external_data=False).graph
    held = {tensor.name for tensor in graph.initializer}
    # Nodes are in the order of a forward: the output head's product is the last one.
    head = next(node.name for node in reversed(graph.node) if node.op_type in ("MatMul", "Gemm"))
    products = [node for node in graph.node if node.op_type == "MatMul"]
    names = {node.name for node in products if node.input[1] in held} - {head}
    if not names:
        raise RunFailed("no projection of this graph has a constant weight that could be quantized")
    # Without a handler the quantizer's import and its warnings would configure the root logger.
    root = logging.getLogger()
    with mock.patch.object(root, "handlers", [*root.handlers, logging.NullHandler()]):
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

        # Not activations, as with `quantize_dynamic`: with one scale for a whole forward, pads too,
        # 9 of 30 held-out forget prompts were decided differently in a batch (SmolLM2, GSM8K).
        config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=BITS[kind])
        others = [node.name for node in products if node.name not in names]
        quantizer = MatMulNBitsQuantizer(
            onnx.load(source), bits=BITS[kind], nodes_to_exclude=others, algo_config=config
        )
        quantizer.process()
        write(quantizer.model.model, target)
    return len(names)


def write(model: onnx.ModelProto, path: Path) -> None:
    """Save a model whose weights are in memory: constants of our operators in `path`, all other weights beside it."""
    ours = {name for node in model.graph.node if node.domain == DOMAIN for name in node.input}
    ours |= {tensor.name for tensor in model.graph.initializer if ".unskill_" in tensor.name}
    convert_model_to_external_data(model, location=weights_of(path).name)
    for tensor in model.graph.initializer:
        if tensor.name in ours:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    # The shapes that the quantizer inferred, and its own metadata: no reader needs them.
    del model.graph.value_info[:]
    model.ClearField("metadata_props")
    onnx.save(model, path)
    # onnx makes the weights' file readable by its owner alone, but the folder may have to be served.
    weights_of(path).chmod(stat.S_IMODE(path.stat().st_mode))
    onnx.checker.check_model(path)
