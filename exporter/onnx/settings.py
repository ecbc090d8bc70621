"""Settings of `unskill onnx`, checked before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.checkpoint.layout import MARKER
from exporter.common.errors import BadInput
from exporter.common.extras import missing
from exporter.common.files import check_apart
from exporter.common.staging import check_target
from exporter.recipes.declared import check, setting
from exporter.recipes.settings import OVERWRITE, QUIET, RECORDED_TEMPLATE

QUANTIZED = ("int8", "int4")
GRAPH = {"float32": "onnx/model.onnx", "float16": "onnx/model_fp16.onnx"}
GRAPH |= {"int8": "onnx/model_int8.onnx", "int4": "onnx/model_q4.onnx"}
"""The graph's file, by the numbers in it; the names are those that transformers.js looks for."""
DTYPES = tuple(name for name in GRAPH if name not in QUANTIZED)
PROMPTS = 4
"""Prompts of every source in a self-check."""


@dataclass(frozen=True)
class OnnxSettings:
    """Settings of `unskill onnx`; fields are named as the flags.

    With `quantize`, forget and retain are the export's own sources, and max_false_block None is the export's value.
    """

    checkpoint: str
    out: Path
    forget: tuple[str, ...] = setting((), metavar="SOURCE", help="Prompts of the skill, to compare on. Repeatable.")
    quantize: str | None = setting(
        None,
        choices=QUANTIZED,
        help="Quantize the weights and refit the interventions (regions, neurons); needs the export's --forget and "
        "--retain, if it had any.",
    )
    retain: tuple[str, ...] = setting((), metavar="SOURCE", help="The export's, for --quantize. Repeatable.")
    system_prompts: tuple[str, ...] = setting(
        (), flag="--system-prompt", help="The export's, for --quantize. Repeatable."
    )
    max_false_block: float | None = setting(
        None,
        minimum=0,
        maximum=1,
        help="Largest share of harmless prompts that --quantize may refuse. Default: as in the export.",
    )
    answers: bool = setting(
        True, help="With --quantize, also look for false blocks in answers, which takes most of the time."
    )
    prompt_template: str | None = setting(**RECORDED_TEMPLATE)
    dtype: str = setting("float32", choices=DTYPES, help="Dtype of the graph.")
    overwrite: bool = setting(**OVERWRITE)
    quiet: bool = setting(**QUIET)
    force: bool = setting(False, help="With --quantize, write even if the skill is not separated.")

    def __post_init__(self) -> None:
        """Raises BadInput for invalid values and combinations, and where a needed package is missing."""
        if lacking := missing("onnx"):
            raise BadInput(f"ONNX {lacking}")
        if self.dtype in QUANTIZED:
            raise BadInput(
                f"--dtype {self.dtype}: quantized weights move the activations that the interventions read, so these "
                f"have to be refitted: use --quantize {self.dtype} --forget SOURCE, with the export's sources"
            )
        check(self)
        if self.quantize is not None and self.dtype != "float32":
            raise BadInput(f"--dtype: with --quantize all but the weights is float32; leave out {self.dtype}")
        for flag, value in (
            ("--retain", self.retain),
            ("--system-prompt", self.system_prompts),
            ("--max-false-block", self.max_false_block is not None),
            ("--no-answers", not self.answers),
            ("--force", self.force),
        ):
            if value and self.quantize is None:
                raise BadInput(f"{flag}: only for --quantize; leave it out")


def check_out(settings: OnnxSettings, size: int) -> None:
    """Raises BadInput or RunFailed where OUT cannot be written, or has less room than `size` bytes."""
    check_apart(settings.out, settings.checkpoint, "OUT and CHECKPOINT")
    check_target(settings.out, settings.overwrite, size, "ONNX folder", MARKER)
