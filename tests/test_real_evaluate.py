"""`unskill evaluate` on a real checkpoint and its base: a generation task that is killed half-way goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny import Exported

pytestmark = [pytest.mark.real, pytest.mark.slow]

ITEMS, BATCH = 6, 2


def test_killed_half_way_gives_the_same(real_export: Exported, tmp_path: Path) -> None:
    items = [
        {
            "question": f"{name} has {a} books and buys {b} more every week for {c} weeks. How many are there then?",
            "answer": f"{a} + {b} * {c} = {a + b * c}\n#### {a + b * c}",
        }
        for name, a, b, c in zip(("Ann", "Ben", "Cem") * 2, range(3, 9), range(2, 8), range(4, 10), strict=True)
    ]
    source = tmp_path / "sums.jsonl"
    source.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")

    def command(out: Path) -> list[str]:
        found = [sys.executable, "-m", "exporter", "evaluate", str(real_export.checkpoint)]
        found += ["--base", str(real_export.base), "--gsm8k", str(source), "--batch-size", str(BATCH)]
        return [*found, "--out", str(out), "--quiet", "--json"]

    whole, out = tmp_path / "whole", tmp_path / "out"
    first = subprocess.run(command(whole), capture_output=True, text=True, check=True)
    running = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = out / "gsm8k-sums_jsonl.base.jsonl"
    while done(lines) < ITEMS // 2 and running.poll() is None:
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    kept = lines.read_bytes()
    assert ITEMS // 2 <= done(lines) < ITEMS
    again = subprocess.run(command(out), capture_output=True, text=True, check=True)
    assert lines.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert again.stdout == first.stdout
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


def done(path: Path) -> int:
    """Items in a file of results, after its header."""
    return max(0, path.read_text(encoding="utf-8").count("\n") - 1) if path.exists() else 0
