"""The code of a checkpoint for MLX: written for the families that mlx_lm has, and a file like the others."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from custom_modeling.loading import code_sha256
from exporter.checkpoint.base.restore import RestoreSettings, restore
from exporter.checkpoint.code import mlx_name, render_mlx
from exporter.checkpoint.push.files import uploads
from exporter.models.families import FAMILIES, GATED, MLX_FAMILIES
from exporter.onnx.folder import plain_config
from exporter.verification.run import VerifySettings, verify
from tests.damage import settings_of
from tests.tiny import Exported

ALLOWED = {"mlx", "mlx_lm", "numpy"}


@pytest.mark.parametrize("family", MLX_FAMILIES)
def test_needs_mlx_and_the_standard_library_only(family: str) -> None:
    tree = ast.parse(render_mlx(family, 2026))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name for node in imports for name in modules(node)}
    assert names & ALLOWED == ALLOWED
    assert names - ALLOWED == {"contextvars", "copy", "dataclasses", "hashlib", "json", "logging"}
    (own,) = [node for node in imports if isinstance(node, ast.ImportFrom) and node.module == "mlx_lm.models"]
    assert [(each.name, each.asname) for each in own.names] == [(MLX_FAMILIES[family], "family")]
    assert {"Model", "ModelArgs"} <= {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    names = [str(node.module)] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
    return [name.split(".")[0] for name in names]


def test_of_supported_families_only() -> None:
    untried = {"cwm", "diffllama", "doge", "ernie4_5", "hunyuan_v1_dense", "hyperclovax", "ministral", "ministral3"}
    untried |= {"olmo", "stablelm", "vaultgemma", "youtu"}
    gated = {name for name, family in FAMILIES.items() if family.form is GATED}
    assert gated - MLX_FAMILIES.keys() == untried and gated > MLX_FAMILIES.keys()


def test_a_file_like_the_others(tiny: Callable[..., Exported], tmp_path: Path) -> None:
    exported = tiny("llama")
    folder, name = exported.checkpoint, mlx_name("llama")
    config = settings_of(folder)
    assert config["model_file"] == name and config["unskill"]["mlx_sha256"] == code_sha256(folder / name)
    assert name in json.loads((folder / "reproduce" / "hashes.json").read_text())
    assert name in [each.path for each in uploads(folder)]
    assert name in (folder / "README.md").read_text()
    assert "model_file" not in plain_config(config, "float32")
    restore(RestoreSettings(str(folder), tmp_path / "back"), lambda text: None)
    assert not list((tmp_path / "back").glob("*.py"))
    assert (tmp_path / "back" / "config.json").read_bytes() == (exported.base / "config.json").read_bytes()


def test_none_for_a_family_that_mlx_lm_lacks(tiny: Callable[..., Exported]) -> None:
    folder = tiny("olmo").checkpoint
    config = settings_of(folder)
    assert not list(folder.glob("mlx_*")) and "model_file" not in config and "mlx_sha256" not in config["unskill"]
    assert "mlx" not in (folder / "README.md").read_text()
    assert verify(VerifySettings(str(folder), model=False), lambda text: None)["ok"]
