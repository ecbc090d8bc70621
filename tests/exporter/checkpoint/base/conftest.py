"""Bases with all kinds of files in them, and checkpoints that keep them, written without a model run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from exporter.checkpoint.base.keeping import keep_base
from exporter.checkpoint.writing import write_weights
from exporter.methods.refusal.token import plan_refusal, write_tokenizer
from exporter.models.files import LICENCES, find_base
from exporter.recipes.settings import DEFAULT_REFUSAL
from tests.tiny import one_skill, tiny_model

SMALL = {
    "README.md": "---\nlicense: mit\n---\n# A model\r\nwith a ü and an odd end",
    "LICENSE": "MIT\n",
    "LICENSE.txt": "MIT, otherwise\n",
    "special_tokens_map.json": '{"bos_token":"<|im_start|>"}',
    "chat_template.jinja": "{{ messages }}\n",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "merges.txt": "#version: 0.2\na b\n",
    "tokenizer.model": b"\n\x0b\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\xff",
    ".gitattributes": "*.bin filter=lfs\n",
}


def make_base(folder: Path, **changes: Any) -> Path:
    """A tiny model with other small files beside it; `changes` as for `tiny_model`."""
    base = tiny_model(folder, **changes)
    for name, content in SMALL.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return base


def make_checkpoint(folder: Path, base_folder: Path, *, blocks: bool = True, **settings: Any) -> Path:
    """A checkpoint with weights, tokenizer and what is kept of the base. Without `blocks` there is no R."""
    base = find_base(str(base_folder))
    config, tokenizer = AutoConfig.from_pretrained(base.folder), AutoTokenizer.from_pretrained(base.folder)
    token = states = None
    if blocks:
        token = plan_refusal(
            json.loads((base.folder / "tokenizer.json").read_text()), config.vocab_size, DEFAULT_REFUSAL
        )
        states = SimpleNamespace(head_row=torch.randn(config.hidden_size))
    loaded: Any = SimpleNamespace(files=base, model=SimpleNamespace(config=config))
    asked = one_skill(base_folder, folder, "forget", "retain", **settings)
    folder.mkdir()
    buffers = {"layers.0.mlp.unskill_ksd_bounds": torch.zeros(1, 2, 64)}
    shards = write_weights(folder, loaded, asked, token, states, buffers)
    (folder / "config.json").write_text('{"unskill": {}}')
    write_tokenizer(base.folder, folder, token, tokenizer)
    for pattern in LICENCES:
        for path in base.folder.glob(pattern):
            (folder / path.name).write_bytes(path.read_bytes())
    keep_base(folder, base, shards, asked.fingerprints)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by its path inside the folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sharded base with padding rows, and a checkpoint of it: to be read."""
    folder = tmp_path_factory.mktemp("pair")
    base = make_base(folder / "base", padding_rows=3, shard_size="100KB")
    return base, make_checkpoint(folder / "checkpoint", base)


@pytest.fixture
def copied(pair: tuple[Path, Path], tmp_path: Path) -> Callable[[], tuple[Path, Path]]:
    """copied(): the base, and a checkpoint of it to be altered."""
    import shutil

    def copy() -> tuple[Path, Path]:
        shutil.copytree(pair[1], tmp_path / "checkpoint")
        return pair[0], tmp_path / "checkpoint"

    return copy
