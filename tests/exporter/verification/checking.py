"""What `unskill verify` finds, by the names of its checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.verification.run import VerifySettings, verify


def checks(folder: Path, **settings: Any) -> dict[str, dict[str, Any]]:
    found = verify(VerifySettings(str(folder), **settings), lambda text: None)
    assert found["ok"] is all(check["ok"] is not False for check in found["checks"])
    return {check["name"]: check for check in found["checks"]}


def results(folder: Path, **settings: Any) -> dict[str, bool | None]:
    return {name: check["ok"] for name, check in checks(folder, **settings).items()}
