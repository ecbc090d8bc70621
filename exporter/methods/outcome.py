"""What an export found for one skill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exporter.prompts.skills import SkillPlan
from exporter.recipes.settings import SkillSettings

if TYPE_CHECKING:
    from exporter.common.rates import Rate
    from exporter.methods.key_space.evidence import Decision, Evidence
    from exporter.methods.key_space.framing import FrameCheck
    from exporter.methods.neurons.choice import NeuronChoice


@dataclass(frozen=True)
class SkillOutcome:
    """What was found for one skill. `neurons`: Neuron Adjust or pruning; the others: Key Space Detection."""

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
        """Whether what must still be answered is left alone, as far as was asked."""
        neurons = self.neurons is None or self.neurons.within_budget
        return neurons and (self.decision is None or self.decision.separates)
