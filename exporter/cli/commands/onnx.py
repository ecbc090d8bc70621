"""The commands `unskill onnx` and `unskill build-ops`; like all of them they import nothing heavy before they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from exporter.cli.options import as_json, recorded_template, shared
from exporter.cli.output import echo_json, messages
from exporter.common.errors import BadInput, Rejected
from exporter.common.files import beside
from exporter.onnx.settings import DTYPES, QUANTIZED, OnnxSettings, no_dtype


class GraphDtype(click.Choice):
    """float32 or float16; for quantized weights the way to them is named."""

    def __init__(self) -> None:
        super().__init__(DTYPES)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in QUANTIZED:
            raise BadInput(no_dtype(value))
        return super().convert(value, param, ctx)


@click.command("onnx", short_help="A checkpoint as ONNX, with its interventions inside.")
@click.argument("checkpoint")
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--forget", multiple=True, metavar="SOURCE", help="Prompts of the skill, to compare on. Repeatable.")
@click.option(
    "--quantize",
    type=click.Choice(QUANTIZED),
    help="Quantize weights, and fit the interventions anew on what that gives; needs the export's --forget, --retain.",
)
@click.option("--retain", multiple=True, metavar="SOURCE", help="The export's, for --quantize. Repeatable.")
@click.option(
    "--system-prompt",
    "system_prompts",
    multiple=True,
    metavar="TEXT",
    help="The export's, for --quantize. Repeatable.",
)
@click.option(
    "--max-false-block",
    type=float,
    help="Greatest share of harmless prompts that --quantize may refuse; default: the export's.",
)
@click.option(
    "--answers/--no-answers",
    default=True,
    show_default=True,
    help="With --quantize, look for false blocks in answers too: most of the time that it takes.",
)
@recorded_template
@click.option("--dtype", type=GraphDtype(), default="float32", show_default=True, help="Of the graph.")
@shared("overwrite", "quiet")
@as_json
@click.option("--force", is_flag=True, help="With --quantize, write even where the skill does not separate.")
def onnx_command(checkpoint: str, out: Path | None, as_json: bool, **flags: Any) -> None:
    """Write CHECKPOINT (folder or Hub id) as ONNX to the folder OUT; default CHECKPOINT-onnx, beside it.

    ONNX Runtime, transformers.js, onnxruntime-genai and optimum load the folder, without unskill. What was written is
    compared with the checkpoint, and where the two differ nothing is kept.

    Quantizing the folder with other tools loses the interventions: int8 and int4 weights move the activations that
    they look at. --quantize fits them anew on the quantized graph, on the export's own prompts.

    \b
    unskill onnx OUT --forget maths.jsonl,column=question
    unskill onnx OUT OUT-int8 --quantize int8 --forget maths.jsonl,column=question --retain code.jsonl
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
    help="The shared object; by default one in the user's cache folder, where it is found again.",
)
@click.option("--cuda/--no-cuda", default=None, help="With CUDA kernels too; default: if there is an nvcc.")
@as_json
def build_ops_command(out: Path | None, cuda: bool | None, as_json: bool) -> None:
    """Compile the kernels of the custom ONNX operators into one shared object, tried with ONNX Runtime 1.20
    to 1.32.

    Needed is a C++17 compiler: CXX, g++ or clang++; for CUDA, nvcc on PATH or named by NVCC. Models run without the
    kernels too, by the bodies of standard operators that they bring along.

    \b
    unskill build-ops --out libunskill_ops.so
    """
    from exporter.onnx.library import build_operators, find_nvcc

    with_cuda = find_nvcc() is not None if cuda is None else cuda
    library = build_operators(out, with_cuda)
    if as_json:
        found = {"out": str(library), "cuda": with_cuda, "bytes": library.stat().st_size}
        echo_json(found)
        return
    kernels = "CPU and CUDA kernels" if with_cuda else "CPU kernels"
    click.echo(f'Built {library}, {kernels}: SessionOptions().register_custom_ops_library("{library}")')
