"""Names of the files of a checkpoint and of an ONNX folder."""

from __future__ import annotations

MARKER = "self_check.json"
GENERATION = "generation_config.json"
FOLDER, HASHES, RECIPE = "reproduce", "hashes.json", "recipe.toml"
