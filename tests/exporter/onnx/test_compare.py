"""examples/onnx/compare: the comparison of runtimes, with ONNX Runtime by bodies and by kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.exporter.onnx.conftest import Written
from tests.tiny import write_prompts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = ROOT / "examples" / "onnx" / "compare"


def test_compare(written: Callable[..., Written], library: Path, tmp_path: Path) -> None:
    exported, folder, _ = written()
    sources = {
        kind: f"{write_prompts(tmp_path / f'{kind}.jsonl', exported.texts[kind])},column=prompt"
        for kind in ("blocked", "answered")
    }
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(*command: object) -> str:
        asked = [sys.executable, *map(str, command)]
        return subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout

    work = tmp_path / "work"
    run(
        *(SCRIPTS / "compare.py", "ask", exported.checkpoint, work),
        *("--forget", sources["blocked"], "--retain", sources["answered"]),
    )
    run(SCRIPTS / "by_onnxruntime.py", folder, work, "bodies")
    run(SCRIPTS / "by_onnxruntime.py", folder, work, "kernels", library)
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in run(SCRIPTS / "compare.py", "judge", work).splitlines()
        if line.startswith("│")
    ]
    assert [row[0] for row in rows] == ["bodies", "kernels"]
    assert all(float(row[1]) < 1e-3 and row[2:6] == ["8/8", "4", "4", "8/8"] for row in rows)
    # A difference is one, and is excused only where torch's decision was close.
    logits = np.fromfile(work / "bodies.logits", np.float32).reshape(8, -1)
    logits[7, 3] += 1
    logits.tofile(work / "bodies.logits")
    assert "1.0e+00" in run(SCRIPTS / "compare.py", "judge", work)
    about = json.loads((work / "prompts.json").read_text())
    about["prompts"][7]["close"] = 2
    (work / "prompts.json").write_text(json.dumps(about))
    row = next(line for line in run(SCRIPTS / "compare.py", "judge", work).splitlines() if "bodies" in line)
    assert "7/7" in row and "1.0e+00" not in row
