"""The result of an export for one skill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exporter.prompts.skills import SkillPlan
from exporter.recipes.settings import SkillSettings

if TYPE_CHECKING:  # torch, which planning an export does without
    from exporter.common.rates import Rate
    from exporter.methods.key_space.detection import Detection
    from exporter.methods.key_space.evidence import Decision, Evidence
    from exporter.methods.key_space.framing import FrameCheck
    from exporter.methods.neurons.choice import NeuronChoice


@dataclass(frozen=True)
class SkillOutcome:
    """The result for one skill. `neurons`: of Neuron Adjust or pruning; `detection`: of Key Space Detection by regions
    along discriminants; the others: by hypercubes."""

    plan: SkillPlan
    neurons: NeuronChoice | None = None
    evidence: Evidence | None = None
    decision: Decision | None = None
    limits: Mapping[str, Rate] = field(default_factory=dict)
    frames: Sequence[FrameCheck] = ()
    detection: Detection | None = None

    @property
    def skill(self) -> SkillSettings:
        return self.plan.skill

    @property
    def works(self) -> bool:
        """Whether harmless prompts and texts are left alone within the requested limits."""
        neurons = self.neurons is None or self.neurons.within_budget
        return neurons and self.fault is None

    @property
    def fault(self) -> str | None:
        """Why Key Space Detection does not separate the skill; None where it does, or is not used."""
        found = self.detection or self.decision
        return found.fault if found is not None else None
