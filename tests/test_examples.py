"""Examples that no other test runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import FORGET, RETAIN, Exported, tiny_model, write_prompts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


def test_blocked_counts_refusals(tiny: Callable[[str], Exported], tmp_path: Path) -> None:
    exported = tiny("llama")
    sources = {
        name: write_prompts(tmp_path / f"{name}.jsonl", exported.texts[name]) for name in ("blocked", "answered")
    }
    command = [sys.executable, str(ROOT / "examples" / "blocked.py"), str(exported.checkpoint)]
    command += [f"{path.name},column=prompt" for path in sources.values()] + ["--prompt-template", "{prompt}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = [[cell.strip() for cell in line.split("│")] for line in done.stdout.splitlines()]
    shares = {row[1].split(".")[0]: row[2:4] for row in rows if len(row) > 4}
    assert shares["blocked"] == ["4", "4"]
    assert shares["answered"] == ["0", "4"]


def test_neurons_compares_methods(tmp_path: Path) -> None:
    """That it runs and fills its table; with a random model not every method forgets anything."""
    base = tiny_model(tmp_path / "tiny", chat=False, max_position_embeddings=4096)
    sources = {
        name: f"{write_prompts(tmp_path / f'{name}.jsonl', texts)},column=prompt"
        for name, texts in (("forget", FORGET), ("retain", RETAIN))
    }
    command = [sys.executable, str(ROOT / "examples" / "neurons.py"), str(base), "--work", str(tmp_path / "work")]
    for name, source in sources.items():
        command += [f"--{name}", source, f"--{name}-test", f"{source},limit=3"]
    command += ["--max-retain-loss", "100", "--no-everyday", "--other-test", f"{sources['retain']},limit=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for row in ("base model", "Neuron Adjust", "--compat official", "Selective Pruning"):
        assert row in done.stdout
    assert "(x" in done.stdout  # a ratio, of those methods by which anything is forgotten at all
