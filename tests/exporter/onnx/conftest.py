"""The library of the operators and tiny ONNX folders, made once a session, and the ways to run an operator."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import onnxruntime
import pytest
import torch

from exporter.errors import BadInput
from exporter.onnx.library import build_operators, find_compiler
from exporter.onnx.settings import OnnxSettings
from exporter.onnx.writing import write_onnx
from tests.operator_models import options, run, session
from tests.tiny import Exported, one_thread, write_prompts

Written = tuple[Exported, Path, dict[str, Any]]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        find_compiler()
    except BadInput as error:
        pytest.skip(str(error))
    return build_operators(tmp_path_factory.mktemp("library") / "operators.so", cuda=False)


@pytest.fixture(scope="session", params=["bodies", "bodies, not optimised", "kernels", "kernels, not optimised"])
def way(request: pytest.FixtureRequest) -> tuple[Path | None, bool]:
    """The library, or None for bodies, and whether ONNX Runtime optimises the model."""
    library = request.getfixturevalue("library") if request.param.startswith("kernels") else None
    return library, "not" not in request.param


@pytest.fixture(scope="session")
def operator(way: tuple[Path | None, bool]) -> Callable[..., torch.Tensor]:
    """operator(name, **inputs) runs one of the operators."""
    made: dict[str, onnxruntime.InferenceSession] = {}

    def call(name: str, **tensors: torch.Tensor) -> torch.Tensor:
        if name not in made:
            made[name] = session(name, options(*way))
        return run(made[name], **tensors)

    return call


@pytest.fixture(scope="session")
def written(
    tiny: Callable[..., Exported], library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Written]:
    """written(family, method, dtype): the checkpoint, its ONNX folder, and what `unskill onnx` printed."""
    made: dict[tuple[str, str, str], Written] = {}

    def get(family: str = "llama", method: str = "na+ksd", dtype: str = "float32") -> Written:
        if (family, method, dtype) not in made:
            exported = tiny(family, method)
            folder = tmp_path_factory.mktemp("onnx")
            forget = write_prompts(folder / "forget.jsonl", exported.texts["blocked"])
            sources = (f"{forget},column=prompt",) if exported.texts["blocked"] else ()
            settings = OnnxSettings(
                str(exported.checkpoint), folder / "out", forget=sources, prompt_template="{prompt}", dtype=dtype
            )
            with one_thread(), mock.patch("exporter.onnx.writing.built_libraries", lambda: [library]):
                summary = write_onnx(settings, lambda text: None)
            made[family, method, dtype] = exported, folder / "out", json.loads(json.dumps(summary))
        return made[family, method, dtype]

    return get
