"""What `unskill onnx` is asked for, checked before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from exporter.errors import BadInput
from exporter.settings import ExportSettings, check_running
from exporter.staging import check_target

GRAPH = {"float32": "onnx/model.onnx", "float16": "onnx/model_fp16.onnx"}
"""The graph's file, by its dtype; the names are those that transformers.js looks for."""
MARKER = "self_check.json"
EXTRA = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class OnnxSettings:
    """Settings of `unskill onnx`; the names are those of the flags. dtype: of the graph, float32 or float16."""

    checkpoint: str
    out: Path
    forget: tuple[str, ...] = ()
    prompt_template: str = "auto"
    dtype: str = "float32"
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        """Raises BadInput for values that no graph can have, and where the packages for it are not there."""
        if missing := [name for name in EXTRA if find_spec(name) is None]:
            raise BadInput(f"ONNX needs the package {missing[0]}: pip install unskill[onnx]")
        check_running(None, self.dtype)
        if self.dtype not in GRAPH:
            raise BadInput(f"--dtype: a graph is {' or '.join(GRAPH)}, not {self.dtype}")


def check_out(settings: OnnxSettings, size: int) -> None:
    """Raises BadInput or RunFailed where OUT cannot be written, or has less room than `size` bytes."""
    check_target(settings.out, settings.overwrite, size, "ONNX folder", MARKER)


def settings_after(export: ExportSettings) -> OnnxSettings:
    """For the checkpoint that an export is to write. Raises what would keep the ONNX folder from being written."""
    settings = OnnxSettings(
        str(export.out),
        export.out.with_name(f"{export.out.name}-onnx"),
        forget=tuple(source for skill in export.skills for source in skill.forget[:1]),
        prompt_template=export.prompt_template,
        overwrite=export.overwrite,
        quiet=export.quiet,
    )
    check_out(settings, 0)
    return settings
