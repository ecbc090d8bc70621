"""The commands `unskill onnx` and `unskill build-ops`. Heavy imports wait until they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from exporter.cli.options import OUT, as_json, options_of
from exporter.cli.output import echo_json, messages
from exporter.common.errors import Rejected
from exporter.common.files import beside
from exporter.onnx.settings import OnnxSettings


@click.command("onnx", short_help="A checkpoint as ONNX, with its interventions inside.")
@click.argument("checkpoint")
@click.argument("out", required=False, type=OUT)
@options_of(OnnxSettings)
@as_json
def onnx_command(checkpoint: str, out: Path | None, as_json: bool, **flags: Any) -> None:
    """Write CHECKPOINT (folder or Hub id) as ONNX to the folder OUT; default CHECKPOINT-onnx, beside it.

    ONNX Runtime, transformers.js, onnxruntime-genai and optimum load the folder, without unskill. The graph is
    compared with the checkpoint, and nothing is kept if the two differ.

    Quantizing the folder with other tools breaks the interventions: int8 and int4 weights move the activations that
    they read. --quantize refits them on the quantized graph, with the export's own prompts; those of packaged skills
    are known already.

    \b
    unskill onnx OUT --forget maths.jsonl,column=question
    unskill onnx BOX BOX-int8 --quantize int8 --forget maths.jsonl,column=question --retain code.jsonl
    """
    settings = OnnxSettings(checkpoint, out or beside(checkpoint, "-onnx"), **flags)

    from exporter.cli.tables.onnx import show_check

    if settings.quantize is None:
        from exporter.onnx.writing import write_onnx as write
    else:
        from exporter.onnx.quantize.run import write_quantized as write

    try:
        summary = write(settings, messages(settings.quiet))
    except Rejected as error:
        show_check(error.summary, as_json)
        raise
    show_check(summary | {"out": str(settings.out)}, as_json)


@click.command("build-ops", short_help="Compile the kernels of the ONNX operators.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The shared object; by default in the user's cache folder, where unskill finds it.",
)
@click.option("--cuda/--no-cuda", default=None, help="Also compile the CUDA kernels; default: if there is an nvcc.")
@as_json
def build_ops_command(out: Path | None, cuda: bool | None, as_json: bool) -> None:
    """Compile the kernels of the custom ONNX operators into one shared object, tested with ONNX Runtime 1.20 to 1.32.

    This needs a C++17 compiler: CXX, g++ or clang++; for CUDA, nvcc on PATH or named by NVCC. Models also run without
    the kernels, through function bodies of standard operators that the graph contains.

    \b
    unskill build-ops --out libunskill_ops.so
    """
    from exporter.onnx.library import build_operators, find_nvcc

    with_cuda = find_nvcc() is not None if cuda is None else cuda
    library = build_operators(out, with_cuda)
    if as_json:
        echo_json({"out": str(library), "cuda": with_cuda, "bytes": library.stat().st_size})
        return
    kernels = "CPU and CUDA kernels" if with_cuda else "CPU kernels"
    click.echo(f'Built {library}, {kernels}: SessionOptions().register_custom_ops_library("{library}")')
