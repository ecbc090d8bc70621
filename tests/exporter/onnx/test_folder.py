"""What lies around a graph: what onnxruntime-genai reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from exporter.models.files import check_checkpoint, find_files
from exporter.onnx.folder import genai_config, write_folder


def model_section(
    unskill: int | None, generation: Any = None, model_type: str = "llama", **live: Any
) -> dict[str, Any]:
    config = {"model_type": f"unskill_{model_type}", "vocab_size": 401, "unskill": {"eos_token_id": unskill}}
    sizes = ("hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "head_dim")
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64}
    loaded = SimpleNamespace(**dict.fromkeys(sizes, 4), **{**ids, **live})
    return genai_config(config, loaded, generation or {}, "float32")["model"]


@pytest.mark.parametrize(
    ("unskill", "live", "generation", "expected"),
    [
        (2, 2, 2, [2]),
        (2, [2, 7], None, [2, 7]),
        (7, [2, 7], None, [7, 2]),
        (2, 2, [2, 9], [2, 9]),
        (None, 2, 9, [2, 9]),
        (2, None, None, [2]),
    ],
)
def test_whatever_ends_an_answer_does_so_in_genai(
    unskill: int | None, live: Any, generation: Any, expected: list[int]
) -> None:
    assert model_section(unskill, {"eos_token_id": generation}, eos_token_id=live)["eos_token_id"] == expected


def test_genai_is_given_one_padding_token_and_no_null() -> None:
    """It loads no folder of which config has null, or a list of padding tokens."""
    found = model_section(2, eos_token_id=[2, 7], pad_token_id=None, bos_token_id=None)
    assert found["pad_token_id"] == 2 and "bos_token_id" not in found
    found = model_section(None, eos_token_id=None, pad_token_id=None)
    assert not {"eos_token_id", "pad_token_id"} & found.keys()


@pytest.mark.parametrize(("family", "kind"), [("gemma3_text", "gemma3_text"), ("qwen3", "qwen3"), ("olmo2", "llama")])
def test_genai_is_given_a_type_that_it_knows(family: str, kind: str) -> None:
    assert model_section(2, model_type=family)["type"] == kind


def test_a_folder_of_licences_stays_behind(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(Path(__file__).parents[2] / "data" / "format-1" / "ksd", checkpoint)
    (checkpoint / "LICENSES").mkdir()
    (checkpoint / "LICENSE.txt").write_text("Anything goes.\n")
    files = find_files(str(checkpoint), "CHECKPOINT", check_checkpoint, code=True)
    sizes = ("hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "head_dim")
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64}
    out = tmp_path / "out"
    out.mkdir()
    write_folder(out, files, SimpleNamespace(**dict.fromkeys(sizes, 4), **ids), "float32")
    assert (out / "LICENSE.txt").is_file() and not (out / "LICENSES").exists()
