"""Optional packages: what each extra of pyproject.toml is needed for at run time, and whether it is there."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "report": ("altair", "vl_convert")}
"""Modules by extra."""


def missing(extra: str) -> str | None:
    """What to install, as the end of a sentence; None where all modules of the extra are there."""
    lacking = next((name for name in EXTRAS[extra] if find_spec(name) is None), None)
    if lacking is None:
        return None
    return f"needs the package {lacking.replace('_', '-')}: pip install unskill[{extra}]"
