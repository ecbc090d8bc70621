"""The Hub of a test, and a checkpoint for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.exporter.checkpoint.push.pushing import USERS, Site
from tests.hub_server import HubServer
from tests.tiny import Exported


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with HubServer(tmp_path / "hub", USERS) as hub:
        yield Site(hub, tmp_path)


@pytest.fixture
def out(tiny: Callable[..., Exported], tmp_path: Path) -> Path:
    """A tiny checkpoint that a test may change."""
    return Path(shutil.copytree(tiny("llama").checkpoint, tmp_path / "checkpoint"))
