"""Scores of one part along the regions of a skill: by place, and with one threshold for all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from exporter.methods.key_space.budget import thresholds_within
from exporter.prompts.packaged_skills import is_near_miss
from exporter.prompts.region_parts import Part
from exporter.prompts.sources import Prompt
from exporter.prompts.turns import AFTER_REFUSAL
from exporter.recipes.settings import SkillSettings


class Harmless(NamedTuple):
    """Scores (prompts, K) of prompts that are to be answered: all but those that are close to the skill, its near
    misses, and messages after it was refused; and those of the answers to some of the others."""

    others: Tensor
    near_misses: Tensor
    after_refusals: Tensor
    answers: Tensor


@dataclass(frozen=True)
class PlaceScores:
    """Scores (n, K) of a part's queries by place, in their order; `answers`, (m, K): of harmless plain queries, those
    in `rows` of `answered`, the least over all positions of the answer, that before its first token included."""

    asked: Tensor
    answered: Tensor
    after: Tensor
    rows: Sequence[int]
    answers: Tensor

    def harmless(self, part: Part) -> Harmless:
        """The least scores of each prompt that is to be answered over its renderings, kinds of turn and answer."""
        least = torch.cat([self.answered, self.after])
        least[list(self.rows)] = torch.minimum(least[list(self.rows)], self.answers)
        prompts: dict[Prompt, list[int]] = defaultdict(list)
        for row, query in enumerate((*part.answered, *part.after)):
            prompts[query.prompt.given].append(row)

        def of(belongs: Callable[[Prompt], bool]) -> Tensor:
            found = [least[rows].amin(0) for prompt, rows in prompts.items() if belongs(prompt)]
            return torch.stack(found) if found else least[:0]

        return Harmless(
            of(lambda prompt: not is_near_miss(prompt) and prompt.source != AFTER_REFUSAL),
            of(is_near_miss),
            of(lambda prompt: prompt.source == AFTER_REFUSAL),
            self.answers[
                torch.tensor([not is_near_miss(part.answered[row].prompt) for row in self.rows], dtype=torch.bool)
            ],
        )

    def thresholds(self, part: Part, skill: SkillSettings) -> Tensor:
        """Of each place the one within the budgets: (K,)."""
        found = self.harmless(part)
        close = (found.near_misses, skill.max_near_miss), (found.after_refusals, skill.max_after_refusal)
        # Few of the others' answers are looked at, so among all others their share would hardly count.
        answers = found.answers, skill.max_false_block
        return thresholds_within(self.asked, found.others, (*close, answers), skill.max_false_block)

    def of_places(self, kept: Sequence[int]) -> PlaceScores:
        """The scores of some of the places, by number."""
        asked, answered, after, answers = (
            each[:, list(kept)] for each in (self.asked, self.answered, self.after, self.answers)
        )
        return PlaceScores(asked, answered, after, self.rows, answers)

    def levelled(self, thresholds: Tensor, common: float) -> PartScores:
        """The scores of regions with a common threshold, see `Regions.levelled`."""
        sides = (self.asked, self.answered, self.after, self.answers)
        asked, answered, after, answers = ((each + common - thresholds).amin(1) for each in sides)
        return PartScores(asked, answered, after, dict(zip(self.rows, answers.tolist(), strict=True)))


@dataclass(frozen=True)
class PartScores:
    """The least over the places, (n,) each; `answers`: by row."""

    asked: Tensor
    answered: Tensor
    after: Tensor
    answers: Mapping[int, float]

    def least(self, part: Part) -> dict[Prompt, float]:
        """The least score of each harmless prompt over its renderings, kinds of turn and answer."""
        least: dict[Prompt, float] = {}
        for row, (query, score) in enumerate(zip(part.answered, self.answered.tolist(), strict=True)):
            found = min(score, self.answers.get(row, score))
            least[query.prompt.given] = min(found, least.get(query.prompt.given, found))
        return least
