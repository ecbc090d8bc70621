"""Reports of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.reporting.run import ReportSettings, report
from tests.tiny import one_thread


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """reported(checkpoint, ...) is the folder of a report, and what is in its report.json; made once, unless fresh."""
    made: dict[str, tuple[Path, dict[str, Any]]] = {}

    def make(checkpoint: Path, *, fresh: bool = False, **settings: Any) -> tuple[Path, dict[str, Any]]:
        key = f"{checkpoint} {settings}"
        if fresh or key not in made:
            out = tmp_path_factory.mktemp("report") / "report"
            with one_thread():
                numbers = report(ReportSettings(str(checkpoint), out, quiet=True, **settings), lambda text: None)
            made[key] = out, numbers
        return made[key]

    return make
