"""JSON as a checkpoint's files have it, and the names of those that everything else looks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER, HASHES, RECIPE = "reproduce", "hashes.json", "recipe.toml"


def write_json(path: Path, content: Any) -> None:
    path.write_text(json_text(content), encoding="utf-8")


def json_text(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
