"""Whether the packages of an optional extra are installed."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {
    "onnx": {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
    "report": {"altair": "altair", "vl_convert": "vl-convert-python"},
}
"""Modules by extra of pyproject.toml, and the packages that have them."""


def missing(extra: str) -> str | None:
    """The end of a sentence that says what to install; None if all modules of the extra are there."""
    lacking = [package for module, package in EXTRAS[extra].items() if find_spec(module) is None]
    return f"needs the package {lacking[0]}: pip install {' '.join(lacking)}" if lacking else None
