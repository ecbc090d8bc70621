"""Settings of `unskill evaluate`, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.common.errors import BadInput
from exporter.prompts.switches import State
from exporter.recipes.declared import check, setting
from exporter.recipes.settings import ARGUMENTS, BATCH_SIZE, DEVICE, DTYPE, QUIET, RECORDED_TEMPLATE, SEED

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
    """Settings of `unskill evaluate`; fields are named as the flags. sources: by kind, see KINDS."""

    checkpoint: str
    out: Path
    sources: dict[str, tuple[str, ...]]
    base: str | None = setting(None, metavar="MODEL", help="The model it was made from, to be measured beside it.")
    shots: str | None = setting(
        None, metavar="SOURCE", help="Solved examples for --choice: the first five of each subject."
    )
    allow_code_execution: bool = setting(False, help="Run the models' programs for --code, in a sandbox.")
    limit: int | None = setting(200, words={"all": None}, minimum=1, help="Items per source.")
    against: Path | None = setting(None, metavar="DIR", help="Folder of an earlier evaluation to compare with.")
    prompt_template: str | None = setting(**RECORDED_TEMPLATE)
    template_args: str | None = setting(**ARGUMENTS)
    formats: str = setting(
        "plain",
        choices=("plain", "mixed"),
        help="mixed: --forget and --retain also under system prompts and as a second turn.",
    )
    seed: int = setting(**SEED)
    dtype: str = setting(**DTYPE)
    device: str = setting(**DEVICE)
    batch_size: int | None = setting(**BATCH_SIZE)
    overwrite: bool = setting(False, help="Start again instead of resuming from what is in the folder.")
    quiet: bool = setting(**QUIET)

    def __post_init__(self) -> None:
        """Raises BadInput for invalid values and combinations."""
        if not any(self.sources.values()):
            raise BadInput(f"nothing to evaluate on: give one of {', '.join(f'--{kind}' for kind in KINDS)}")
        check(self)
        if self.template_args is not None:
            State.given(self.template_args)
        if self.shots and not self.sources.get("choice"):
            raise BadInput("--shots: are solved examples for --choice, which is not given")
        if self.sources.get("code") and not self.allow_code_execution:
            raise BadInput(
                "--code: runs programs that the models write; --allow-code-execution says that they may, confined"
            )
        if self.against is not None and not self.against.is_dir():
            raise BadInput(f"--against: {self.against} is not the folder of an earlier evaluation")

    @property
    def state(self) -> State | None:
        """Of the chat template, that prompts are in."""
        return None if self.template_args is None else State.given(self.template_args)
