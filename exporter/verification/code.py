"""The modeling file: the one that was exported, and what unskill would write again."""

from __future__ import annotations

import re
from difflib import unified_diff

from custom_modeling.loading import code_sha256
from exporter.checkpoint.code import render_modeling
from exporter.common.version import __version__
from exporter.verification.checks import NotMade, Wrong
from exporter.verification.on_disk import OnDisk

YEAR = re.compile(r"# Copyright (\d{4}),")
SHOWN_LINES = 8


def check_code(view: OnDisk) -> str:
    """Its sha256 is the one that config.json records."""
    name = f"modeling_unskill_{view.model_type}.py"
    if code_sha256(view.folder / name) != view.record.get("code_sha256"):
        raise Wrong(f"{name} is not the file that was exported (unskill.code_sha256 in config.json)")
    return f"{name} as exported"


def check_code_again(view: OnDisk) -> str:
    """The text that this unskill writes for the family, where the same version wrote the checkpoint."""
    name = f"modeling_unskill_{view.model_type}.py"
    written = view.record.get("version")
    if written != __version__:
        raise NotMade(f"written by unskill {written}, this is {__version__}, which may write other code: not compared")
    found = (view.folder / name).read_text(encoding="utf-8")
    year = YEAR.match(found)
    expected = render_modeling(view.family, int(year[1]) if year else None)
    if found != expected:
        lines = list(unified_diff(expected.splitlines(), found.splitlines(), "expected", name, lineterm="", n=0))
        more = f"\n... {len(lines) - SHOWN_LINES} more lines" if len(lines) > SHOWN_LINES else ""
        shown = "\n".join(line[:120] for line in lines[:SHOWN_LINES])
        raise Wrong(f"{name} is not what unskill {__version__} writes:\n{shown}{more}")
    return f"{name} is what unskill {__version__} writes"
