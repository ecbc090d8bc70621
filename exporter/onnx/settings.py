"""What `unskill onnx` is asked for, checked before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.checkpoint.layout import MARKER
from exporter.common.errors import BadInput
from exporter.common.extras import missing
from exporter.common.files import check_apart
from exporter.common.staging import check_target
from exporter.recipes.settings import check_running

QUANTIZED = ("int8", "int4")
GRAPH = {"float32": "onnx/model.onnx", "float16": "onnx/model_fp16.onnx"}
GRAPH |= {"int8": "onnx/model_int8.onnx", "int4": "onnx/model_q4.onnx"}
"""The graph's file, by the numbers in it; the names are those that transformers.js looks for."""
DTYPES = tuple(name for name in GRAPH if name not in QUANTIZED)
PROMPTS = 4
"""Prompts of every source in a self-check."""


@dataclass(frozen=True)
class OnnxSettings:
    """Settings of `unskill onnx`; the names are those of the flags.

    dtype: of the graph, float32 or float16; quantize: of the projections' weights, int8, int4 or None. With it, forget
    and retain are the export's own sources, and max_false_block None means the export's too; so
    does prompt_template None, with quantize or without.
    """

    checkpoint: str
    out: Path
    forget: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    prompt_template: str | None = None
    dtype: str = "float32"
    quantize: str | None = None
    system_prompts: tuple[str, ...] = ()
    max_false_block: float | None = None
    answers: bool = True
    overwrite: bool = False
    force: bool = False
    quiet: bool = False

    @property
    def numbers(self) -> str:
        """By which GRAPH names the file."""
        return self.quantize or self.dtype

    def __post_init__(self) -> None:
        """Raises BadInput for values that no graph can have, and where the packages for it are not there."""
        if lacking := missing("onnx"):
            raise BadInput(f"ONNX {lacking}")
        if self.dtype in QUANTIZED:
            raise BadInput(no_dtype(self.dtype))
        check_running(None, self.dtype)
        if self.dtype not in DTYPES:
            raise BadInput(f"--dtype: a graph is {' or '.join(DTYPES)}, not {self.dtype}")
        if self.quantize is not None and self.quantize not in QUANTIZED:
            raise BadInput(f"--quantize: weights become {' or '.join(QUANTIZED)}, not {self.quantize}")
        if self.quantize is not None and self.dtype != "float32":
            raise BadInput(f"--dtype: with --quantize all but the weights is float32; leave out {self.dtype}")
        if self.max_false_block is not None and not 0 <= self.max_false_block <= 1:
            raise BadInput(f"--max-false-block: {self.max_false_block} is not between 0 and 1")
        for flag, value in (
            ("--retain", self.retain),
            ("--system-prompt", self.system_prompts),
            ("--max-false-block", self.max_false_block is not None),
            ("--no-answers", not self.answers),
            ("--force", self.force),
        ):
            if value and self.quantize is None:
                raise BadInput(f"{flag}: is about fitting anew, for --quantize; leave it out")


def no_dtype(name: str) -> str:
    """Why quantized weights are not asked for by --dtype."""
    return (
        f"--dtype {name}: quantized weights move the activations that the interventions look at, so these have to be "
        f"fitted anew: --quantize {name} --forget SOURCE, with the export's sources"
    )


def check_out(settings: OnnxSettings, size: int) -> None:
    """Raises BadInput or RunFailed where OUT cannot be written, or has less room than `size` bytes."""
    check_apart(settings.out, settings.checkpoint, "OUT and CHECKPOINT")
    check_target(settings.out, settings.overwrite, size, "ONNX folder", MARKER)
