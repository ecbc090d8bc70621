"""Whether the packages of an optional extra are installed."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "report": ("altair", "vl_convert")}
"""Modules by extra of pyproject.toml."""


def missing(extra: str) -> str | None:
    """The end of a sentence that says what to install; None if all modules of the extra are there."""
    lacking = next((name for name in EXTRAS[extra] if find_spec(name) is None), None)
    if lacking is None:
        return None
    return f"needs the package {lacking.replace('_', '-')}: pip install unskill[{extra}]"
