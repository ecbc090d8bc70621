"""Experiments of examples/paper by their command, in this process: a new one takes seconds to import torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from examples.paper.__main__ import main
from tests.tiny import one_thread


def invoke(folder: Path, recipe: str, *flags: str) -> None:
    """Run a recipe whose sources lie in `folder`, with results to its `out`. Raises what the experiment raises."""
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    command = [str(folder / "recipe.toml"), "--data", str(folder), "--out", str(folder / "out"), *flags]
    with one_thread():
        main(command, standalone_mode=False)


def found(folder: Path, recipe: str, *flags: str) -> dict[str, Any]:
    """The numbers of results.json."""
    invoke(folder, recipe, *flags)
    whole: dict[str, Any] = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    return whole["results"]
