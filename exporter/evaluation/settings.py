"""What `unskill evaluate` is asked for, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.common.errors import BadInput
from exporter.recipes.declared import check, setting
from exporter.recipes.settings import check_running

COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "choice": (("question", "choices", "answer"), ("subject",)),
    "gsm8k": (("question", "answer"), ()),
    "qa": (("context", "question"), ("answers", "answer")),
    "code": ((), ("text", "test_list", "test_setup_code", "prompt", "test", "entry_point")),
}
"""Columns that a task needs, and others that it reads where they are there."""
KINDS = ("forget", "retain", "text", *COLUMNS)
"""The tasks that there are, by the flag that names their sources."""


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of `unskill evaluate`; the names are those of the flags.

    limit: items of each source, None for all; prompt_template: None is the export's.
    """

    checkpoint: str
    out: Path
    sources: dict[str, tuple[str, ...]]
    base: str | None = None
    shots: str | None = None
    against: Path | None = None
    allow_code_execution: bool = False
    limit: int | None = setting(200, words={"all": None}, minimum=1, help="Items a source.")
    prompt_template: str | None = None
    formats: str = "plain"
    seed: int = 0
    dtype: str = "auto"
    device: str = "cpu"
    batch_size: int | None = None
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        """Raises BadInput for values that no evaluation can have."""
        if not any(self.sources.values()):
            raise BadInput(f"nothing to evaluate on: give one of {', '.join(f'--{kind}' for kind in KINDS)}")
        check(self)
        check_running(self.batch_size, self.dtype, seed=self.seed)
        if self.shots and not self.sources.get("choice"):
            raise BadInput("--shots: are solved examples for --choice, which is not given")
        if self.sources.get("code") and not self.allow_code_execution:
            raise BadInput(
                "--code: runs programs that the models write; --allow-code-execution says that they may, confined"
            )
        if self.against is not None and not self.against.is_dir():
            raise BadInput(f"--against: {self.against} is not the folder of an earlier evaluation")
