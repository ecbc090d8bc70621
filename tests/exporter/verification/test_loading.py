"""What is said of a config.json that transformers can make no model of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporter.common.errors import BadInput
from exporter.models.files import find_base
from exporter.models.loading import load_files
from tests.damage import edit, set_
from tests.tiny import tiny_model


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "16"},
        {"num_attention_heads": 3},
        {"num_attention_heads": 0},
        {"layer_types": ["x"]},
        {"num_hidden_layers": "3"},
        {"rope_theta": "x", "rope_parameters": "x"},
    ],
    ids=str,
)
def test_unsound_sizes(changes: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    edit(base / "config.json", set_(**changes))
    with pytest.raises(BadInput, match="MODEL base does not load: "):
        load_files(find_base(str(base)), "auto", "cpu", "MODEL")
