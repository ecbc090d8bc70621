"""Charts for the model card: of those of `unskill report`, the ones that tell most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exporter.checkpoint.card.figure import Figure
from exporter.checkpoint.reading import Stored, StoredSkill
from exporter.checkpoint.reproduce import prompt_records, statistics
from exporter.checkpoint.summary import Summary
from exporter.methods.outcome import SkillOutcome
from exporter.reporting.collect import matrix_figure
from exporter.reporting.key_space import key_space_figures
from exporter.reporting.neurons import trade_off_figures
from exporter.reporting.page.render import render_png

FOLDER = "figures"
KINDS = ("matrix", "alpha", "layers", "trade_off")


def draw_figures(folder: Path, outcomes: Sequence[SkillOutcome], summary: Summary) -> list[Figure]:
    """Write folder/figures/*.png, and return what they show: no text of any prompt."""
    skills = []
    for outcome, found in zip(outcomes, summary.skills, strict=True):
        tensors = {name: tensor.numpy() for name, tensor in statistics(outcome).items()}
        skills.append(StoredSkill(found.name, found, prompt_records(outcome), tensors))
    names = [skill.name for skill in skills]
    matrix = matrix_figure(Stored("", {}, {}, summary, tuple(skills)))
    figures = [matrix] if matrix else []
    for number, skill in enumerate(skills, start=1):
        if skill.summary.key_space is not None and skill.summary.key_space.discriminant is None:
            figures += key_space_figures(skill, number, names)
        # One trial alone is no curve.
        if skill.summary.neurons is not None and len(skill.summary.neurons.trials) > 1:
            figures += trade_off_figures(skill, number)
    chosen = [figure for figure in figures if figure.kind in KINDS]
    (folder / FOLDER).mkdir()
    for figure in chosen:
        (folder / FOLDER / f"{figure.id}.png").write_bytes(render_png(figure))
    return chosen
