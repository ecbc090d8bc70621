"""The model of an export in memory, its prompts as the model sees them, and what an export says before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from exporter.checkpoint.environment import environment
from exporter.checkpoint.findings import Plan
from exporter.common.cache import cache_folder, make_room
from exporter.common.progress import Progress
from exporter.common.text import Notify, counted
from exporter.methods.neurons.statistics_file import model_fingerprint
from exporter.methods.refusal.token import rehearse
from exporter.models.kept import Kept, environment_of
from exporter.models.loading import LoadedModel, load
from exporter.models.named_ids import rowless
from exporter.models.prober import Prober
from exporter.models.tokens import context_of
from exporter.prompts.formats import Formatter
from exporter.prompts.skills import SkillPlan, SkillPrompts, prepare_for
from exporter.prompts.without_rows import check_texts
from exporter.recipes.settings import ExportSettings


class Prepared(NamedTuple):
    """All that probing needs."""

    loaded: LoadedModel
    prober: Prober
    formatter: Formatter
    plans: list[SkillPlan]


def prepared(planned: Plan, notify: Notify, progress: Progress, loaded: LoadedModel | None = None) -> Prepared:
    """Load the model, unless it is given, and format and split the prompts. Raises BadInput where they do not fit."""
    settings = planned.settings
    if loaded is None:
        with progress.stage("loading", 0, planned.base.name):
            loaded = load(planned.base, settings.dtype, settings.device, settings.threads)
    if planned.recorded is not None:
        planned.recorded.compare(environment(settings), notify)
    rehearse(planned.base.folder, planned.token, loaded.tokenizer)
    if (pad := loaded.lost_pad) is not None:
        notify(f"MODEL has no row for its pad token '{pad}', so the checkpoint's tokenizer has no pad token.")
    prober = Prober(loaded, settings.batch_size, progress, keeper(loaded, notify) if settings.cache else None)
    with progress.stage("preparing prompts", 0):
        formatter, plans = prepare(planned.skills, loaded, settings, notify)
    return Prepared(loaded, prober, formatter, plans)


def prepare(
    skills: Sequence[SkillPrompts], loaded: LoadedModel, settings: ExportSettings, notify: Notify
) -> tuple[Formatter, list[SkillPlan]]:
    """Prompts formatted as the model sees them, and split into parts."""
    check_texts(skills, settings, loaded.tokenizer, rowless(loaded.tokenizer, loaded.files.rows))
    return prepare_for(skills, loaded.tokenizer, context_of(loaded.model), settings, notify)


def keeper(loaded: LoadedModel, notify: Notify) -> Kept | None:
    """Where the results of the base's batches are kept, if anywhere."""
    folder = cache_folder()
    if folder is None:
        return None
    try:
        make_room(folder)
    except OSError as error:
        notify(f"warning: {folder} holds more than it should, and {error.filename} stays ({error.strerror})")
    notify(f"what the base computes is kept in {folder} (unskill cache)")
    model = {
        "identity": loaded.files.identity,
        "weights": model_fingerprint(loaded),
        "dtype": loaded.model.dtype,
        "device": loaded.device,
        "attention": loaded.model.config._attn_implementation,
    }
    return Kept(folder, environment_of(model), notify)


def lines(planned: Plan, ready: Prepared) -> list[str]:
    """What an export says of itself before it begins."""
    settings, loaded = planned.settings, ready.loaded
    weights = sum(each.numel() for each in loaded.model.parameters()) / 1e6
    family, kind = loaded.files.config["model_type"], str(loaded.model.dtype).removeprefix("torch.")
    found = [f"{loaded.name}: {family}, {weights:,.1f} million weights, {kind}, {loaded.device}"]
    for plan in ready.plans:
        found.append(f"{plan.skill.name}: {plan.skill.method}, {parts_of(plan)}")
    return [*found, f"OUT: {settings.out}, at most {planned.size / 2**20:,.0f} MiB"]


def parts_of(plan: SkillPlan) -> str:
    """How many queries each part has."""
    if plan.parts is None:
        sides = {"forget": vars(plan.forget), "retain": vars(plan.retain)}
        counts = {
            side: ", ".join(f"{len(part)} to {use}" for use, part in parts.items()) for side, parts in sides.items()
        }
        return "; ".join(f"{side}: {found}" for side, found in counts.items())
    parts = {"fit": plan.parts.fit, "report on": plan.parts.report}
    return "; ".join(
        f"to {use}: {counted(len(part.asked), 'prompt')} of the skill, {len(part.answered) + len(part.after)} others"
        for use, part in parts.items()
    )
