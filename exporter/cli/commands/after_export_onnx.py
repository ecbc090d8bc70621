"""`unskill export --onnx`: what is asked before the export, and the ONNX folder after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exporter.common.errors import BadInput, Interrupted
from exporter.common.staging import sibling
from exporter.onnx.settings import OnnxSettings, check_out
from exporter.prompts.sources import write_template
from exporter.recipes.settings import ExportSettings


def settings_to_write(export: ExportSettings) -> OnnxSettings:
    """For the checkpoint that an export is to write. Raises what would keep the ONNX folder from being written."""
    if export.compat is not None:
        raise BadInput("--onnx: draws of --compat are torch's own, which ONNX does not have; leave one of the two out")
    settings = OnnxSettings(
        str(export.out),
        sibling(export.out, "-onnx"),
        forget=tuple(source for skill in export.skills for source in skill.forget[:1]),
        prompt_template=write_template(export.prompt_template),
        overwrite=export.overwrite,
        quiet=export.quiet,
    )
    check_out(settings, 0)
    return settings


def write_exported(settings: OnnxSettings, summary: dict[str, Any], remark: Callable[[str], None]) -> None:
    """As `write_onnx`; Ctrl-C says that the checkpoint is there. summary: of the export; gets what was found, also
    where graph and checkpoint do not agree, as "onnx"."""
    from exporter.onnx.writing import Disagrees, write_onnx

    try:
        summary["onnx"] = write_onnx(settings, remark) | {"out": str(settings.out)}
    except Disagrees as error:
        summary["onnx"] = error.summary
        raise
    except KeyboardInterrupt:
        out = settings.checkpoint
        raise Interrupted(f"{out} is written, but not its ONNX folder; go on with: unskill onnx {out}") from None
