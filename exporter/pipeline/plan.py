"""What can be wrong without the model is found here, before torch is imported."""

from __future__ import annotations

from pathlib import Path

from exporter.checkpoint.base.keeping import kept_size
from exporter.checkpoint.card.metadata import inherited
from exporter.checkpoint.findings import Plan
from exporter.common.errors import BadInput
from exporter.common.extras import missing
from exporter.common.files import check_apart, read_json
from exporter.common.staging import check_target, repair
from exporter.common.text import Notify
from exporter.methods.refusal.token import RefusalToken, plan_refusal
from exporter.models.files import Base, find_base, size_in
from exporter.pipeline.inputs import check_recorded
from exporter.pipeline.prompt_warnings import of_prompts
from exporter.prompts.skills import read_skills
from exporter.recipes.recorded import Recorded
from exporter.recipes.settings import ExportSettings

# What a checkpoint holds beside the weights: tokenizer, statistics, the extra shard.
EXTRA_BYTES = 64 * 2**20
HINT = (
    "The model card gets no figures: they need packages that are not installed. pip install 'unskill[report]', or say "
    "--no-figures."
)


def plan(settings: ExportSettings, notify: Notify, recorded: Recorded | None = None) -> Plan:
    """Read and split the sources, find the base model, and look at OUT and the disk.

    recorded: what an earlier export read and was run with, where its recipe is followed.

    Raises BadInput for wrong usage or input, RunFailed where OUT has no room.
    """
    skills = read_skills(settings)
    if settings.statistics is not None and not settings.statistics.is_file():
        raise BadInput(f"--statistics: no such file: {settings.statistics}")
    base = find_base(settings.model, settings.revision)
    if recorded is not None:
        check_recorded(recorded, base, settings.statistics, notify)
    check_apart(settings.out, base.folder, "OUT and MODEL")
    for text in repair(settings.out):
        notify(text)
    size = sum((base.folder / shard).stat().st_size for shard in base.shards) + kept_size(base) + EXTRA_BYTES
    check_target(settings.out, settings.overwrite, size, ours=is_checkpoint)
    token = refusal_token(settings, base) if settings.blocks else None
    warnings = of_prompts(skills)
    for warning in warnings:
        # Said at once, and again in the end: who reads it now need not wait.
        notify(f"warning: {warning.message}")
    figures = settings.figures and missing("report") is None
    _, unreadable = inherited(base)
    for problem in (unreadable, HINT if settings.figures and not figures else None):
        if problem:
            notify(problem)
    return Plan(settings, tuple(skills), base, token, recorded, size, figures, tuple(warnings))


def refusal_token(settings: ExportSettings, base: Base) -> RefusalToken:
    """Raises BadInput for a message or a tokenizer with which there can be none."""
    tokenizer = read_json(base.folder / "tokenizer.json", base.name, "MODEL")
    return plan_refusal(tokenizer, size_in(base.config, "vocab_size"), settings.refusal)


def is_checkpoint(folder: Path) -> bool:
    """Whether unskill wrote it: --overwrite must not take a base model for a checkpoint."""
    return isinstance(read_json(folder / "config.json", folder.name, "OUT").get("unskill"), dict)
