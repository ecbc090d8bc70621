"""`unskill report` from its settings to the folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.checkpoint.given_prompts import read_given
from exporter.checkpoint.reading import read_stored
from exporter.common.errors import BadInput
from exporter.common.extras import missing
from exporter.common.files import check_apart, json_text, write_errors
from exporter.common.staging import Staging, check_target, repair
from exporter.common.text import Notify
from exporter.reporting.collect import add_texts, collect
from exporter.reporting.models import add_models

# The page is about a megabyte, each PNG a twentieth of one.
NEEDED_BYTES = 16 * 2**20


@dataclass(frozen=True)
class ReportSettings:
    """Settings of `unskill report`; the names are those of the flags."""

    checkpoint: str
    out: Path
    forget: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    base: str | None = None
    device: str = "cpu"
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        """Raises BadInput for settings that contradict each other."""
        if self.base is not None and not (self.forget or self.retain):
            raise BadInput("--base: is asked prompts of the export, so give --forget SOURCE or --retain SOURCE too")


def report(settings: ReportSettings, notify: Notify) -> dict[str, Any]:
    """Write the report and return what is in its report.json.

    Raises BadInput for a checkpoint, sources and a folder that cannot be used, RunFailed on a full disk.
    """
    if lacking := missing("report"):
        raise BadInput(f"report {lacking}")
    check_apart(settings.out, settings.checkpoint, "--out and CHECKPOINT")
    for text in repair(settings.out):
        notify(text)
    check_target(settings.out, settings.overwrite, NEEDED_BYTES, what="report", marker="report.json")

    from exporter.reporting.page.render import figures_of, render_page, render_png  # needs the extra

    stored = read_stored(settings.checkpoint)
    given = read_given(stored, settings.forget, settings.retain, notify)
    numbers = collect(stored)
    add_texts(numbers, given)
    if settings.base is not None:
        add_models(numbers, stored, given, settings.checkpoint, settings.base, settings.device, settings.quiet)
    files = {"report.json": json_text(numbers).encode(), "report.html": render_page(numbers).encode()}
    files |= {f"figures/{figure.id}.png": render_png(figure) for figure in figures_of(numbers)}
    with Staging(settings.out, overwrite=settings.overwrite) as staging:
        (staging.path / "figures").mkdir()
        for name, content in files.items():
            with write_errors(staging.path / name):
                (staging.path / name).write_bytes(content)
        staging.commit()
    return numbers
