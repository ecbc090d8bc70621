"""What can be found wrong without the model, before torch is imported."""

from __future__ import annotations

from pathlib import Path

from exporter.checkpoint.base.keeping import kept_size
from exporter.checkpoint.card.metadata import base_model, inherited
from exporter.checkpoint.findings import Plan
from exporter.common.errors import BadInput
from exporter.common.extras import missing
from exporter.common.files import check_apart, read_json
from exporter.common.staging import check_target, repair
from exporter.common.text import Notify
from exporter.methods.refusal.token import plan_refusal
from exporter.models.families import FAMILIES
from exporter.models.files import check_writable, find_base, size_in
from exporter.pipeline.inputs import check_described, check_packaged, check_recorded
from exporter.pipeline.prompt_warnings import of_prompts
from exporter.prompts.skills import read_skills
from exporter.recipes.recorded import Recorded
from exporter.recipes.settings import ExportSettings

# What a checkpoint holds beside the weights: tokenizer, statistics, the extra shard.
EXTRA_BYTES = 64 * 2**20
NAMELESS = "The model card names no base model, as MODEL is a folder: --base-model USER/NAME names the one on the Hub."


def plan(settings: ExportSettings, notify: Notify, recorded: Recorded | None = None) -> Plan:
    """Read and split the sources, find the base model, and check OUT and the free disk space.

    recorded: what an earlier export read and was run with, where its recipe is followed.

    Raises BadInput for wrong usage or input, also for a refusal that the tokenizer cannot have; RunFailed where the
    disk has no room for OUT.
    """
    if recorded is not None:
        check_packaged(recorded, settings)
    check_described(settings, recorded)
    skills = read_skills(settings, notify)
    if settings.statistics is not None and not settings.statistics.is_file():
        raise BadInput(f"--statistics: no such file: {settings.statistics}")
    base = find_base(settings.model, settings.revision)
    check_writable(base)
    for skill in settings.skills:
        skill.layer_number(size_in(base.config, "num_hidden_layers"))
        form = FAMILIES[base.config["model_type"]].form
        if not set(skill.method.split("+")) <= set(form.methods):
            raise BadInput(
                f"--method {skill.method}: MODEL {base.name} is {form.computes}, whose neurons are not changed, "
                f"as each token has its own: use --method {' or '.join(form.methods)}"
            )
    if recorded is not None:
        check_recorded(recorded, base, settings.statistics, notify)
    generator = None
    if settings.generator is not None and any(skill.to_write for skill in settings.skills):
        generator = find_base(settings.generator, what="--generator")
    check_apart(settings.out, base.folder, "OUT and MODEL")
    for text in repair(settings.out):
        notify(text)
    size = sum((base.folder / shard).stat().st_size for shard in base.shards) + kept_size(base) + EXTRA_BYTES
    check_target(settings.out, settings.overwrite, size, ours=is_checkpoint)
    token = None
    if settings.blocks:
        tokenizer = read_json(base.folder / "tokenizer.json", base.name, "MODEL")
        token = plan_refusal(tokenizer, size_in(base.config, "vocab_size"), settings.refusal)
    warnings = of_prompts(skills)
    for warning in warnings:
        # Shown now, before the long work, and again with the summary.
        notify(f"warning: {warning.message}")
    lacking = missing("report") if settings.figures else None
    hint = f"The model card gets no figures, which {lacking}; or give --no-figures." if lacking else None
    _, unreadable = inherited(base)
    nameless = base_model(base, settings.base_model) is None
    for problem in (unreadable, NAMELESS if nameless else None, hint):
        if problem:
            notify(problem)
    return Plan(
        settings,
        tuple(skills),
        base,
        token,
        recorded,
        size,
        settings.figures and not lacking,
        tuple(warnings),
        generator,
    )


def is_checkpoint(folder: Path) -> bool:
    """Whether unskill wrote the folder: --overwrite must not replace a base model."""
    return isinstance(read_json(folder / "config.json", folder.name, "OUT").get("unskill"), dict)
