"""The result of an export for one skill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exporter.prompts.skills import SkillPlan
from exporter.recipes.settings import SkillSettings

if TYPE_CHECKING:  # torch, which planning an export does without
    from exporter.common.rates import Rate
    from exporter.methods.key_space.evidence import Decision, Evidence
    from exporter.methods.key_space.framing import FrameCheck
    from exporter.methods.neurons.choice import NeuronChoice


@dataclass(frozen=True)
class SkillOutcome:
    """The result for one skill. `neurons`: of Neuron Adjust or pruning; the others: of Key Space Detection."""

    plan: SkillPlan
    neurons: NeuronChoice | None = None
    evidence: Evidence | None = None
    decision: Decision | None = None
    limits: Mapping[str, Rate] = field(default_factory=dict)
    frames: Sequence[FrameCheck] = ()

    @property
    def skill(self) -> SkillSettings:
        return self.plan.skill

    @property
    def works(self) -> bool:
        """Whether harmless prompts and texts are left alone within the requested limits."""
        neurons = self.neurons is None or self.neurons.within_budget
        return neurons and (self.decision is None or self.decision.separates)
