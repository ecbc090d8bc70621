"""Warnings about prompts, before the model is loaded: prompts of two sets that are nearly the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from exporter.checkpoint.summary import ExportWarning
from exporter.prompts.overlap import compare
from exporter.prompts.packaged import EVERYDAY
from exporter.prompts.skills import SkillPrompts
from exporter.prompts.sources import Prompt

EXAMPLES = 3
"""Pairs of rows that a warning names."""

Pairs = Sequence[tuple[Prompt, Prompt]]


def of_prompts(skills: Sequence[SkillPrompts]) -> list[ExportWarning]:
    """All warnings about the prompts of these skills."""
    found = [overlap(each.skill.name, each.forget, each.retain) for each in skills]
    for one, other in combinations(skills, 2):
        found.append(shared_prompts((one.skill.name, other.skill.name), one.forget, other.forget))
    return [*filter(None, found)]


def overlap(skill: str, forget: Sequence[Prompt], retain: Sequence[Prompt]) -> ExportWarning | None:
    """Retain and everyday prompts that are nearly forget prompts."""
    pairs = [(forget[match.one], retain[match.other]) for match in compare(forget, retain)]
    if not pairs:
        return None
    everyday = [other.kind for _, other in pairs if other.source == EVERYDAY]
    kinds = sorted({kind for kind in everyday if kind})
    todo = ["take one of each two out"] if len(everyday) < len(pairs) else []
    # The packaged file is not the user's to edit.
    todo += [f"leave such everyday prompts out with --everyday-without {','.join(kinds)}"] if kinds else []
    return ExportWarning(
        code="overlap",
        skill=skill,
        message=f"{len(pairs)} of the {len(retain)} retain and everyday prompts are nearly forget prompts (but for "
        f"case, punctuation, numbers or a word), such as {examples(pairs)}: {', and '.join(todo)}",
        figures={"pairs": len(pairs), "retain": len(retain), "everyday": len(everyday), "examples": rows(pairs)},
    )


def shared_prompts(skills: tuple[str, str], ones: Sequence[Prompt], others: Sequence[Prompt]) -> ExportWarning | None:
    """Forget prompts of two skills that are the same or nearly so."""
    pairs = [(ones[match.one], others[match.other]) for match in compare(ones, others)]
    if not pairs:
        return None
    return ExportWarning(
        code="skills-overlap",
        skill=None,
        message=f"{len(pairs)} of the {len(others)} forget prompts of {skills[1]} are nearly or wholly forget prompts "
        f"of {skills[0]}, such as {examples(pairs)}: each of both skills is to leave the other's prompts alone, so "
        "give a prompt to one of them",
        figures={"skills": list(skills), "pairs": len(pairs), "prompts": len(others), "examples": rows(pairs)},
    )


def examples(pairs: Pairs) -> str:
    named = ([f"{each.source} row {each.row}" for each in pair] for pair in pairs[:EXAMPLES])
    return ", ".join(map(" and ".join, named))


def rows(pairs: Pairs) -> list[list[dict[str, Any]]]:
    """The first pairs by source and row: no text."""
    return [[{"source": each.source, "row": each.row} for each in pair] for pair in pairs[:EXAMPLES]]
