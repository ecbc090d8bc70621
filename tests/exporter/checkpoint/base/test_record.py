"""The list of the base's files, damaged or leading elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.common.errors import BadInput
from tests.exporter.checkpoint.base.test_restore import back
from tests.tiny import edit_json

OUTSIDE: list[object] = ["../x", "/etc/passwd", "a/../../x", "", ".", "a//b", "a\0b", "a\x1bb"]


@pytest.mark.parametrize(
    ("place", "path"),
    [
        *(("name", path) for path in OUTSIDE),
        *((place, path) for place in ("path", "header", "rows_path") for path in [*OUTSIDE, 7, None]),
    ],
)
def test_paths_that_lead_outside(
    copied: Callable[[], tuple[Path, Path]], tmp_path: Path, place: str, path: object
) -> None:
    _, checkpoint = copied()

    def change(record: dict[str, Any]) -> dict[str, Any]:
        files = record["files"]
        name = next(name for name, each in files.items() if each.get("rows_path"))
        if place == "name":
            files[str(path)] = files.pop(name)
        else:
            files[name][place] = path
        return record

    edit_json(checkpoint / "reproduce" / "base" / "files.json", change)
    with pytest.raises(BadInput, match=r"files\.json is damaged"):
        back(checkpoint, tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    "change",
    [
        {"files": []},
        {"files": {"config.json": {}}},
        {"files": {"a": {"from": "nowhere", "size": 1, "sha256": None, "path": "a"}}},
        {"files": {"a": {"from": "kept", "size": -1, "sha256": None, "path": "a"}}},
        {"files": {"a": {"from": "shard", "size": 1, "sha256": None, "path": "a", "header": "h", "rows": 1}}},
        {"left_out": [{}]},
        {"model": None},
        {"format": 2},
    ],
)
def test_damaged_record(copied: Callable[[], tuple[Path, Path]], tmp_path: Path, change: dict[str, Any]) -> None:
    _, checkpoint = copied()
    edit_json(checkpoint / "reproduce" / "base" / "files.json", lambda record: {**record, **change})
    with pytest.raises(BadInput, match="format 2" if "format" in change else "damaged") as caught:
        back(checkpoint, tmp_path / "back")
    assert "\n" not in str(caught.value)
