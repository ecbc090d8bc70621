"""`unskill onnx`: a checkpoint as a folder that ONNX Runtime, transformers.js, onnxruntime-genai and optimum load."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from tempfile import TemporaryFile
from typing import Any

from exporter.common.errors import Rejected
from exporter.models.loading import load_files
from exporter.onnx.check.self_check import Expected, room_for, self_check
from exporter.onnx.folder import checked_folder, graph_size, open_checkpoint, results, write_folder
from exporter.onnx.graph import release_weights, write_graph
from exporter.onnx.library import built_libraries
from exporter.onnx.settings import PROMPTS, OnnxSettings, check_out
from exporter.prompts.formats import PLAIN, Query
from exporter.prompts.packaged import everyday_prompts
from exporter.prompts.sources import Source, load_prompts
from exporter.recipes.templates import given_template

TRIED = 64
"""The self-check takes the shortest of this many prompts: time, memory and disk grow with their lengths."""


def write_onnx(settings: OnnxSettings, notify: Callable[[str], None]) -> dict[str, Any]:
    """Write the ONNX folder of a checkpoint and check it against torch.

    Raises BadInput for what cannot be exported, RunFailed where torch cannot trace the model, the disk is full or the
    graph computes something else than the checkpoint; nothing is written then. With quantize, see
    `exporter.onnx.quantize.run.write_quantized`.
    """
    files = open_checkpoint(settings, notify)
    sources = [Source.parse(spec, "--forget") for spec in settings.forget]
    prompts = [load_prompts(source, "--forget", notify)[:TRIED] for source in sources]
    size = graph_size(files, settings.dtype)
    check_out(settings, size)
    loaded = load_files(files, settings.dtype, "cpu", code=True)
    model = loaded.model
    formatter = loaded.formatter(given_template(settings.prompt_template), formats=PLAIN, skip_long=True)
    queries = [query for each in prompts for query in shortest(formatter.format(each, "--forget"))]
    queries += formatter.format(everyday_prompts()[:PROMPTS], "everyday")
    free = shutil.disk_usage(settings.out.absolute().parent).free
    sequences = fitting([query.ids for query in queries], lambda some: size + room_for(some, model) <= free)
    if len(sequences) < len(queries):
        notify(f"the {len(queries) - len(sequences)} longest prompts are not compared: the disk lacks room for logits")
    size += room_for(sequences, model)
    check_out(settings, size)
    with checked_folder(settings, files, size) as (graph, summary):
        start = time.monotonic()
        notify(f"tracing {files.name} in {settings.dtype}: minutes for a model of many layers ...")
        write_graph(model, graph)
        write_folder(graph.parent.parent, files, model.config, settings.dtype)
        kernels = next(iter(built_libraries()), None)
        what = "bodies and kernels" if kernels else "bodies (unskill build-ops builds kernels)"
        notify(f"traced in {time.monotonic() - start:.0f} s; comparing torch with ONNX Runtime, {what} ...")
        with TemporaryFile(dir=graph.parent) as file:
            expected = Expected(model, sequences, loaded.pad_id, file)
            release_weights(model)  # a session holds them once more
            rows, agree = self_check(expected, graph, kernels)
        summary |= results(graph, rows, agree)
        if not agree:
            raise Rejected("the graph computes something else than the checkpoint: nothing was written", summary)
    return summary


def shortest(queries: Sequence[Query]) -> list[Query]:
    """The PROMPTS shortest queries, in their order."""
    kept = sorted(range(len(queries)), key=lambda place: len(queries[place].ids))[:PROMPTS]
    return [queries[place] for place in sorted(kept)]


def fitting(sequences: list[Sequence[int]], fits: Callable[[list[Sequence[int]]], bool]) -> list[Sequence[int]]:
    """The sequences without the longest ones, until they fit or one is left."""
    kept = list(sequences)
    while len(kept) > 1 and not fits(kept):
        kept.remove(max(kept, key=len))
    return kept
