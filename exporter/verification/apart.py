"""A checkpoint verified as a user would load it: in a process of its own, by code that nothing has imported before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from exporter.common.errors import RunFailed

# Modules are found where this process finds them; what stands in PYTHONPATH would come before Python's own.
START = """
import json, runpy, sys
sys.path[:] = json.loads(sys.argv.pop(1))
runpy.run_module("exporter", run_name="__main__")
"""
LAST = 400
"""Characters of what a process said last that an error repeats."""


class NotVerified(RunFailed):
    """The checks were not made, as where memory runs out: the checkpoint may be sound."""


def verify_apart(checkpoint: Path, device: str, threads: int | None) -> list[dict[str, Any]]:
    """The checks of `unskill verify`, made by another process with a cache of its own for modeling code.

    threads: of torch, None for its default. Raises NotVerified where the process ends without a result.
    """
    command = [sys.executable, "-c", START, json.dumps(sys.path), "verify", str(checkpoint), "--device", device]
    with tempfile.TemporaryDirectory(prefix="unskill-modules-") as modules:
        environment = {**os.environ, "HF_MODULES_CACHE": modules, "HF_HUB_OFFLINE": "1"}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        done = subprocess.run(
            [*command, "--json", "--quiet"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=environment,
        )
    try:
        checks: list[dict[str, Any]] = json.loads(done.stdout)["checks"]
    except (ValueError, KeyError) as error:
        said = " ".join(done.stderr.split())[-LAST:] or "nothing"
        raise NotVerified(
            f"the process that verifies the checkpoint ended with {done.returncode} and said: {said}"
        ) from error
    return checks
