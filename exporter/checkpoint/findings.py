"""What an export goes by, and what it has found: all that a checkpoint is written of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.checkpoint.summary import ExportWarning
from exporter.methods.outcome import SkillOutcome
from exporter.methods.refusal.token import RefusalToken
from exporter.models.files import Base
from exporter.prompts.skills import SkillPrompts
from exporter.recipes.recorded import Recorded
from exporter.recipes.settings import ExportSettings

if TYPE_CHECKING:  # torch, without which an export is planned
    from exporter.common.rates import Rate
    from exporter.methods.neurons.choice import TextEffect, TextSet
    from exporter.methods.neurons.scores import NeuronChanges
    from exporter.methods.refusal.head import RefusalStates
    from exporter.models.loading import LoadedModel


@dataclass(frozen=True)
class Plan:
    """An export whose inputs are known and sound, before its model is loaded.

    Attributes:
        settings: What was asked.
        skills: Prompts of every skill.
        base: Files of the base model.
        token: The refusal; None where nothing is ever blocked, and the vocabulary is the base's.
        recorded: What an earlier export was run with, where its recipe is followed.
        size: Bytes that the checkpoint needs.
        figures: Whether the card gets figures.
        warnings: What there is to say of the prompts.
        generator: Files of the model that writes prompts, where that is another than the base.
    """

    settings: ExportSettings
    skills: tuple[SkillPrompts, ...]
    base: Base
    token: RefusalToken | None
    recorded: Recorded | None
    size: int
    figures: bool
    warnings: tuple[ExportWarning, ...]
    generator: Base | None = None


@dataclass(frozen=True)
class Findings:
    """What was found on the live model.

    Attributes:
        loaded: The model, as it was.
        formats: Formats of the prompts that were looked at.
        outcomes: What was found for each skill, in the plan's order.
        changes: Neurons of all skills together.
        effects: What these changes do to the texts of the report parts.
        states: Final states by which any head refuses; None where nothing is ever blocked.
        halved: Whether memory ran out, and batches were made smaller than the settings say.
        blocked_by_any: Harmless prompts that any skill blocks; None unless several skills block.
    """

    loaded: LoadedModel
    formats: tuple[str, ...]
    outcomes: tuple[SkillOutcome, ...]
    changes: NeuronChanges
    effects: Mapping[TextSet, TextEffect]
    states: RefusalStates | None
    halved: bool
    blocked_by_any: Rate | None
