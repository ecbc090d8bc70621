"""Scores of a part, and the thresholds within the budgets."""

from __future__ import annotations

import pytest
import torch

from exporter.methods.key_space.region_scores import PlaceScores
from exporter.prompts.formats import PLAIN, Query
from exporter.prompts.region_parts import Part
from exporter.prompts.sources import Prompt
from exporter.recipes.settings import SkillSettings

PROMPTS, ANSWERS = 2000, 200


@pytest.mark.parametrize(("inside", "near", "threshold"), [(2, 0, 0.7), (3, 0, 0.2), (8, 0, 0.2), (6, 5, 0.7)])
def test_few_answers_do_not_hide_among_many_prompts(inside: int, near: int, threshold: float) -> None:
    """Of 2,000 prompts more may be inside, with their answers; of 200 answers that were looked at no more than 2.
    Those to near misses have their own budget."""
    sources = ["maths near misses" if row < near else "everyday" for row in range(PROMPTS)]
    answered = tuple(Query(Prompt(f"{row}", source, row), PLAIN, (row,)) for row, source in enumerate(sources))
    asked = tuple(Query(Prompt(f"sum {row}", "maths", row), PLAIN, (row,)) for row in range(100))
    scores = torch.full((PROMPTS, 1), 1.0).double()
    answers = torch.full((ANSWERS, 1), 1.0).double()
    answers[:inside] = 0.4
    own = PlaceScores(torch.zeros(100, 1).double(), scores, scores[:0], range(ANSWERS), answers)
    found = own.thresholds(Part(asked, answered, ()), SkillSettings(packaged=("maths",), max_near_miss=1.0))
    assert found.item() == pytest.approx(threshold)
