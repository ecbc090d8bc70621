"""Every path inside a checkpoint or an ONNX folder that more than one module names, relative to it."""

from __future__ import annotations

# Only an ONNX folder has it.
MARKER = "self_check.json"

REPRODUCE = "reproduce"
HASHES = f"{REPRODUCE}/hashes.json"
PROMPTS = f"{REPRODUCE}/prompts.json"
RECIPE = f"{REPRODUCE}/recipe.toml"
STATISTICS = f"{REPRODUCE}/statistics.safetensors"
SUMMARY = f"{REPRODUCE}/summary.json"
VERSIONS = f"{REPRODUCE}/versions.json"
# What is kept of the base.
BASE_FOLDER = f"{REPRODUCE}/base"
BASE_RECORD = f"{BASE_FOLDER}/files.json"
