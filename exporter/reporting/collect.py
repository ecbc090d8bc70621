"""All numbers of a report as one JSON object, from what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from exporter.checkpoint.card.figure import Figure, Row
from exporter.checkpoint.given_prompts import Given
from exporter.checkpoint.reading import Stored, StoredSkill
from exporter.checkpoint.sentences import promise, rate_rows, warning_lines
from exporter.checkpoint.summary import StoredRate
from exporter.checkpoint.verdict import verdict
from exporter.common.version import __version__
from exporter.prompts.packaged import EVERYDAY
from exporter.reporting.key_space import key_space_figures, nearest
from exporter.reporting.neurons import effect_rows, place_figure, trade_off_figures
from exporter.reporting.regions import discriminant_figures


def collect(stored: Stored) -> dict[str, Any]:
    """Everything that the page shows, without paths and prompt texts.

    "skills" has for each skill its tables and "figures"; "matrix" is a figure too, or null with a single skill. A
    figure is an object of id, kind, title, caption, rows and rules (see `Figure`).
    """
    summary, names = stored.summary, [skill.name for skill in stored.skills]
    matrix = matrix_figure(stored)
    return {
        "unskill": __version__,
        "checkpoint": stored.name,
        "written_by": summary.unskill,
        "model": summary.model,
        "revision": summary.revision,
        "dtype": summary.dtype,
        "seed": summary.seed,
        "draws": summary.draws,
        "compat": summary.compat,
        "formats": list(summary.formats),
        "refusal": stored.unskill.get("refusal"),
        "neurons_changed": summary.neurons_changed,
        "warnings": warning_lines(summary),
        "matrix": matrix.as_json() if matrix else None,
        "skills": [skill_numbers(stored, skill, number, names) for number, skill in enumerate(stored.skills, start=1)],
    }


def skill_numbers(stored: Stored, skill: StoredSkill, number: int, names: list[str]) -> dict[str, Any]:
    found = skill.summary
    figures: list[Figure] = []
    numbers: dict[str, Any] = {
        "name": skill.name,
        "method": found.method,
        "verdict": verdict(found),
        "works": found.works,
        "parts": found.parts,
        "sources": [each.model_dump(include={"flag", "label", "prompts"}) for each in found.sources],
        "key_space": None,
        "neurons": None,
    }
    if (cubes := found.key_space) is not None:
        hypercubes = cubes.discriminant is None
        figures += key_space_figures(skill, number, names) if hypercubes else discriminant_figures(cubes, number)
        numbers["key_space"] = {
            "promise": promise(
                cubes.layer,
                cubes.alpha,
                cubes.fault,
                stored.summary.dtype,
                cubes.discriminant,
                found.flags,
                stored.summary.neurons_changed > 0,
            ),
            "layer": cubes.layer,
            "alpha": cubes.alpha.model_dump(),
            "rates": rate_rows(cubes),
            "nearest": nearest(skill, cubes) if hypercubes else {},
        }
    if found.neurons is not None:
        figures += [*trade_off_figures(skill, number), place_figure(skill, found.neurons, number)]
        numbers["neurons"] = {"texts": effect_rows(found.neurons)}
    return numbers | {"figures": [figure.as_json() for figure in figures]}


def matrix_figure(stored: Stored) -> Figure | None:
    """Which skill's hypercubes hold which skill's prompts; None with one skill, or none that is refused."""
    blocking = [(skill, skill.summary.key_space) for skill in stored.skills if skill.summary.key_space is not None]
    if len(stored.skills) < 2 or not blocking:
        return None
    rows: list[Row] = []
    for column, found in blocking:
        for row in stored.skills:
            if row is column:
                rows.append(cell(row.name, column.name, [formats["all"] for formats in found.blocked.values()]))
            elif other := found.false_blocks.get(f"skill {row.name}"):
                rows.append(cell(row.name, column.name, [other["all"]]))
        if everyday := found.false_blocks.get(EVERYDAY):
            rows.append(cell("everyday prompts", column.name, [everyday["all"]]))
    caption = (
        "Share of each row's prompts whose last token is inside the hypercubes of each column's skill, and their "
        "number. Report part: prompts that nothing was fitted or chosen on. All but the diagonal should be 0; an "
        "empty cell has no prompts, where a skill's retain set has those of the other."
    )
    return Figure("matrix", "matrix", "Which skill's hypercubes hold which prompts", caption, rows)


def cell(prompts: str, by: str, rates: Sequence[StoredRate]) -> Row:
    hits, total = sum(each.hits for each in rates), sum(each.total for each in rates)
    return {"prompts": prompts, "by": by, "hits": hits, "total": total, "share": hits / total if total else 0.0}


def add_texts(numbers: dict[str, Any], given: Given) -> None:
    """Add their texts to the prompts that are listed; null where a source is not given."""
    numbers["sources_given"] = bool(given)
    key_spaces = [skill["key_space"] for skill in numbers["skills"] if given and skill["key_space"]]
    for row in chain.from_iterable(rows for found in key_spaces for rows in found["nearest"].values()):
        prompt = given.find(row)
        row["text"] = None if prompt is None else prompt.text
