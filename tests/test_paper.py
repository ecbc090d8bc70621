"""The experiments of examples/paper, each by its command on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import FORGET, RETAIN, tiny_model, write_prompts

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and the sources that the recipes here name."""
    folder = tmp_path_factory.mktemp("paper")
    tiny_model(folder / "tiny", chat=False, max_position_embeddings=4096)
    write_prompts(folder / "forget.jsonl", FORGET)
    write_prompts(folder / "retain.jsonl", RETAIN)
    return folder


def run(place: Path, recipe: str, *flags: str) -> subprocess.CompletedProcess[str]:
    (place / "recipe.toml").write_text(f'model = "{place / "tiny"}"\n{recipe}', encoding="utf-8")
    command = [sys.executable, "-m", "examples.paper", str(place / "recipe.toml"), "--data", str(place)]
    command += ["--out", str(place / "out"), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def results(place: Path, recipe: str, *flags: str) -> dict[str, Any]:
    done = run(place, recipe, *flags)
    assert done.returncode == 0, done.stderr
    return json.loads((place / "out" / "results.json").read_text(encoding="utf-8"))


MEMBERSHIP = """
experiment = "membership"
title = "tiny"
fit = 30
calibrate = 20
test = 10

[skills]
one = "forget.jsonl,column=prompt"
two = "retain.jsonl,column=prompt"
"""


def test_membership_fills_its_matrices(place: Path) -> None:
    found = results(place, MEMBERSHIP)["results"]
    for key in ("best", "last"):
        cells = {(cell["prompts"], cell["by"]): cell for cell in found[key]["cells"]}
        assert set(cells) == {(prompts, by) for prompts in ("one", "two") for by in ("one", "two")}
        assert all(cell["total"] == 10 for cell in cells.values())
        diagonal = [cells[name, name]["hits"] / 10 for name in ("one", "two")]
        assert found[key]["diagonal"] == pytest.approx(sum(diagonal) / 2)
    assert (place / "out" / "matrix-best.png").stat().st_size > 1000
    assert "Mean of the diagonal" in (place / "out" / "tables.md").read_text(encoding="utf-8")


def test_an_experiment_is_the_same_twice(place: Path) -> None:
    assert results(place, MEMBERSHIP) == results(place, MEMBERSHIP)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (('"membership"', '"magic"'), "experiment = 'magic' is none of"),
        (("fit = 30", "fits = 30"), "fits: Extra inputs are not permitted"),
        (("fit = 30", 'fit = "many"'), "fit: Input should be a valid integer"),
        (("fit = 30", "fit = 300"), "skills.one: "),
        (("forget.jsonl", "nothing.jsonl"), "skills.one"),
    ],
)
def test_bad_recipes_are_one_line(place: Path, change: tuple[str, str], expected: str) -> None:
    done = run(place, MEMBERSHIP.replace(*change))
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and expected in line
