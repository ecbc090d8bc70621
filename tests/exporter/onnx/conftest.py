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
from transformers import AutoModelForCausalLM

from exporter.common.errors import BadInput
from exporter.onnx.graph import write_graph
from exporter.onnx.library import build_operators, find_compiler
from exporter.onnx.settings import OnnxSettings
from exporter.onnx.writing import write_onnx
from exporter.pipeline.run import export
from tests.exporter.onnx.quantize.quantizing import TEXTS, Made, export_settings
from tests.operator_models import options, run, session
from tests.tiny import Exported, one_thread, tiny_model, write_prompts

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


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """made(method), a key of CHECKPOINTS"""
    found: dict[str, Made] = {}

    def get(method: str) -> Made:
        if method not in found:
            folder = tmp_path_factory.mktemp(f"quantize-{method}")
            size = {} if "ksd" in method else {"intermediate_size": 256}
            base = tiny_model(folder / "base", chat=method == "turns", **size)
            sources = {
                side: f"{write_prompts(folder / f'{side}.jsonl', texts)},column=prompt"
                for side, texts in TEXTS.items()
            }
            given = {side: (spec,) for side, spec in sources.items()}
            if method == "two":
                given = {"forget": tuple(sources.values()), "retain": tuple(sources.values())[::-1]}
            with one_thread():
                export(export_settings(method, base, folder / "mine", sources), lambda text: None)
                model = AutoModelForCausalLM.from_pretrained(folder / "mine", trust_remote_code=True).eval()
                (folder / "graph").mkdir()
                write_graph(model, folder / "graph" / "model.onnx")
            budget = None if method in ("regions", "turns") else 1.0
            found[method] = Made(folder / "mine", given, folder / "graph" / "model.onnx", budget)
        return found[method]

    return get


@pytest.fixture(scope="session")
def quantized(
    made: Callable[[str], Made], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Made, Path, dict[str, Any]]]:
    """quantized(method, kind): the checkpoint, its folder, and what self_check.json has."""
    found: dict[tuple[str, str], tuple[Made, Path, dict[str, Any]]] = {}

    def get(method: str, kind: str) -> tuple[Made, Path, dict[str, Any]]:
        if (method, kind) not in found:
            out = tmp_path_factory.mktemp(f"{method}-{kind}") / "out"
            found[method, kind] = made(method), out, made(method).write(out, kind)
        return found[method, kind]

    return get
