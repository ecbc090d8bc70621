"""Examples that no other test runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.tiny import Exported, write_prompts

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
