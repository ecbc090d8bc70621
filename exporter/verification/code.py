"""The modeling file and the one for MLX: those that were exported, and what unskill would write again."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import unified_diff

from custom_modeling.loading import code_sha256
from exporter.checkpoint.code import mlx_name, render_mlx, render_modeling
from exporter.common.version import __version__
from exporter.verification.checks import NotMade, Wrong
from exporter.verification.on_disk import OnDisk

YEAR = re.compile(r"# Copyright (\d{4}),")
SHOWN_LINES = 8


def check_code(view: OnDisk) -> str:
    """Their sha256 are those that config.json records."""
    names = {"code_sha256": f"modeling_unskill_{view.model_type}.py"}
    if "mlx_sha256" in view.record:  # older checkpoints have no file for MLX, nor have families that mlx_lm lacks
        names["mlx_sha256"] = mlx_name(view.model_type)
    for key, name in names.items():
        if code_sha256(view.folder / name) != view.record.get(key):
            raise Wrong(f"{name} is not the file that was exported (unskill.{key} in config.json)")
    return f"{' and '.join(names.values())} as exported"


def check_code_again(view: OnDisk) -> str:
    """The texts that this unskill writes for the family, where the same version wrote the checkpoint."""
    modeling = f"modeling_unskill_{view.model_type}.py"
    renders: dict[str, Callable[[int | None], str]] = {modeling: lambda year: render_modeling(view.family, year)}
    if "mlx_sha256" in view.record:
        renders[mlx_name(view.model_type)] = lambda year: render_mlx(view.model_type, year)
    written = view.record.get("version")
    if written != __version__:
        raise NotMade(f"written by unskill {written}, this is {__version__}, which may write other code: not compared")
    for name, render in renders.items():
        compare(view, name, render)
    return f"what unskill {__version__} writes: {', '.join(renders)}"


def compare(view: OnDisk, name: str, render: Callable[[int | None], str]) -> None:
    """Raise Wrong, with the first lines that differ, where a file is not what `render` gives for its year."""
    found = (view.folder / name).read_text(encoding="utf-8")
    year = YEAR.match(found)
    expected = render(int(year[1]) if year else None)
    if found != expected:
        lines = list(unified_diff(expected.splitlines(), found.splitlines(), "expected", name, lineterm="", n=0))
        more = f"\n... {len(lines) - SHOWN_LINES} more lines" if len(lines) > SHOWN_LINES else ""
        shown = "\n".join(line[:120] for line in lines[:SHOWN_LINES])
        raise Wrong(f"{name} is not what unskill {__version__} writes:\n{shown}{more}")
