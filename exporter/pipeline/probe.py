"""`unskill probe`: the statistics of neurons alone, for later exports; an interrupted one can be resumed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from exporter.checkpoint.environment import environment
from exporter.common.errors import BadInput
from exporter.common.progress import Progress
from exporter.common.text import Notify
from exporter.methods.neurons.statistics_file import (
    SIDES,
    ProbedSide,
    StatisticsFile,
    model_fingerprint,
    texts_fingerprint,
)
from exporter.methods.neurons.texts import longest_first, probe_texts
from exporter.models.files import find_base
from exporter.models.loading import load
from exporter.models.prober import Prober
from exporter.pipeline.inputs import check_packaged, check_recorded
from exporter.pipeline.prepared import prepare
from exporter.prompts.skills import read_skills
from exporter.recipes.recorded import Recorded
from exporter.recipes.settings import ExportSettings

# Between two saves of the sums so far: a save takes a second for a large model.
SAVE_SECONDS = 30.0


def probe(settings: ExportSettings, notify: Notify, recorded: Recorded | None = None) -> dict[str, Any]:
    """Probe the fit texts of every skill, write the file settings.out, and return what it holds, as a JSON object.

    recorded: see `export`. An interrupted probe leaves FILE.partial, from which one of the same model and texts goes
    on. Raises BadInput for wrong input, where the file exists (unless settings.overwrite), and where FILE.partial is
    of another model; RunFailed where the run cannot go on.
    """
    if not any(skill.changes_neurons for skill in settings.skills):
        raise BadInput(
            "--recipe: statistics of neurons are for methods na, na+ksd and sp, and no skill has one of them"
        )
    if any(skill.to_write for skill in settings.skills):
        raise BadInput(
            "--recipe: the prompts of a description (describe) are written during an export; keep them there with "
            "--save-prompts FILE, and name them in the recipe as read_prompts"
        )
    if settings.out.exists() and not settings.overwrite:
        raise BadInput(f"OUT: {settings.out} exists: name another file or give --overwrite")
    if not settings.out.resolve().parent.is_dir():
        raise BadInput(f"OUT: {settings.out.parent} is not a folder; make it first")
    if recorded is not None:
        check_packaged(recorded, settings)
    skills = read_skills(settings, notify)
    base = find_base(settings.model, settings.revision)
    if recorded is not None:
        check_recorded(recorded, base, None, notify)

    loaded = load(base, settings.dtype, settings.device, settings.threads)
    if recorded is not None:
        recorded.compare(environment(settings), notify)
    prober = Prober(loaded, settings.batch_size, Progress(settings.quiet))
    _, plans = prepare(skills, loaded, settings, notify)
    file = StatisticsFile(model_fingerprint(loaded), str(loaded.model.dtype).removeprefix("torch."))
    partial = settings.out.with_name(f"{settings.out.name}.partial")
    before = resumable(partial, file, notify)
    saved = time.monotonic()
    for plan in plans:
        if plan.texts is None:
            continue
        fit = {side: getattr(plan.texts, side)["fit"] for side in SIDES}
        sides = {side: ProbedSide(texts_fingerprint(texts), len(texts)) for side, texts in fit.items()}
        file.skills[plan.skill.name] = sides
        for side, probed in sides.items():
            known = before.find(fit[side], side) if before else None
            if known is not None:
                probed.done, probed.sums = known.done, known.sums
            start = probed.done

            def after(done: int, sums: Any, probed: ProbedSide = probed, start: int = start) -> None:
                nonlocal saved
                probed.done, probed.sums = start + done, sums
                if time.monotonic() - saved > SAVE_SECONDS:
                    file.save(partial)
                    saved = time.monotonic()

            if texts := longest_first(fit[side])[start:]:
                probe_texts(prober, texts, f"{plan.skill.name}: {side} texts", probed.sums, after)
                file.save(partial)
    file.save(settings.out)
    partial.unlink(missing_ok=True)
    return {
        "model": base.name,
        "model_sha256": file.model,
        "dtype": file.dtype,
        "seed": settings.seed,
        "skills": {
            name: {
                side: {
                    "texts": each.texts,
                    "tokens": int(each.sums.moments.layers[0].count) if each.sums else 0,
                    "fingerprint": each.fingerprint,
                }
                for side, each in sides.items()
            }
            for name, sides in file.skills.items()
        },
    }


def resumable(partial: Path, file: StatisticsFile, notify: Notify) -> StatisticsFile | None:
    """What an interrupted probe left, or None. Raises BadInput where that is of another model."""
    if not partial.is_file():
        return None
    before = StatisticsFile.load(partial, "OUT")
    if (before.model, before.dtype) != (file.model, file.dtype):
        raise BadInput(f"OUT: {partial.name} was left by an interrupted probe of another model; remove it")
    notify(f"Going on with {partial.name}, left by an interrupted probe.")
    return before
