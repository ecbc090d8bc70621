"""The process that verifies what was written: what is said where it ends without a result."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from exporter.verification.apart import NotVerified, verify_apart


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotVerified, match=r"ended with 2 and said: unskill: error: CHECKPOINT .* is not one that"):
        verify_apart(tmp_path, "cpu", 1)


def test_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(NotVerified, match="ended with 1 and said: nothing"):
        verify_apart(tmp_path, "cpu", None)
