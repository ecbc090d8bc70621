"""The summary of an export: everything that was measured, as one JSON object."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from exporter.common.rates import rates
from exporter.common.version import __version__

if TYPE_CHECKING:
    from exporter.common.rates import Rate
    from exporter.methods.key_space.evidence import Decision, Evidence
    from exporter.methods.key_space.framing import FrameCheck
    from exporter.methods.neurons.choice import NeuronChoice, TextEffect
    from exporter.methods.neurons.scores import NeuronChanges
    from exporter.methods.outcome import SkillOutcome
    from exporter.methods.refusal.states import RefusalStates
    from exporter.models.loading import LoadedModel
    from exporter.pipeline.warnings import Caution, SharedNeurons
    from exporter.prompts.formats import Formatter
    from exporter.recipes.settings import ExportSettings, SkillSettings


def summarise(
    settings: ExportSettings,
    loaded: LoadedModel,
    formatter: Formatter,
    outcomes: Sequence[SkillOutcome],
    changes: NeuronChanges,
    effects: Mapping[str, TextEffect],
    states: RefusalStates | None,
    shared: Sequence[SharedNeurons],
    cautions: Sequence[Caution],
) -> dict[str, Any]:
    """Everything measured, as a JSON object without paths or prompt texts.

    "skills" has for each skill "neurons" and "key_space", what was found by Neuron Adjust (or pruning) and by Key
    Space Detection, else null. Rates are objects of hits, total, rate, and low and high of the exact 95 % interval;
    all but `layers[].choose_*` come from the report parts. `false_blocks` is about the prompt's last token,
    `false_blocks_over_answers` about every position from there on through the greedy answer of the model without
    hypercubes; where there are several skills, the others' prompts are among them as "skill NAME".
    `blocked_in_unseen_formats` is about hypercubes that were fitted without the system prompt or exchange of the
    prompt in question. `frames`: see `FrameCheck`. `texts`: losses of the report parts' texts with all neurons of all
    skills changed, against the base's. "shared_neurons": see `SharedNeurons`; "warnings": see `Caution`.
    """
    return {
        "unskill": __version__,
        "model": loaded.base.name,
        "revision": loaded.base.revision,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "seed": settings.seed,
        "draws": settings.draws,
        "compat": settings.compat,
        "formats": list(formatter.formats_used),
        "neurons_changed": changes.count(),
        "base_model_class": {"closed": states.closed, **states.measured} if states else None,
        "skills": [skill_summary(outcome, effects) for outcome in outcomes],
        "shared_neurons": [each.as_json() for each in shared],
        "warnings": [asdict(caution) for caution in cautions],
    }


def skill_summary(outcome: SkillOutcome, effects: Mapping[str, TextEffect]) -> dict[str, Any]:
    skill, plan = outcome.skill, outcome.plan
    neurons, key_space = None, None
    if outcome.neurons is not None:
        neurons = neurons_summary(skill, outcome.neurons, effects)
    if outcome.evidence is not None and outcome.decision is not None:
        key_space = key_space_summary(skill, outcome.evidence, outcome.decision, outcome.limits, outcome.frames)
    return {
        "name": skill.name,
        "method": skill.method,
        "works": outcome.works,
        "sources": [asdict(source) for source in plan.prompts.records],
        "parts": {
            "forget": {name: len(part) for name, part in asdict_parts(plan.forget).items()},
            "retain": {name: len(part) for name, part in asdict_parts(plan.retain).items()},
        },
        "neurons": neurons,
        "key_space": key_space,
    }


def neurons_summary(skill: SkillSettings, choice: NeuronChoice, effects: Mapping[str, TextEffect]) -> dict[str, Any]:
    counts = {str(layer): len(each.index) for layer, each in choice.changes.adjusted.items()}
    counts |= {str(layer): len(index) for layer, index in choice.changes.pruned.items()}
    return {
        "score": choice.score,
        "beta": choice.beta,
        "borne": choice.within_budget,
        "max_retain_loss": skill.max_retain_loss,
        "tokens": {"forget": choice.forget.gaussian.count, "retain": choice.retain.gaussian.count},
        "neurons": choice.changes.count(),
        "layers": counts,
        "trials": [asdict(trial) for trial in choice.trials],
        "texts": {
            name.removeprefix(f"{skill.name}: "): {**asdict(each), "perplexity_ratio": math.exp(each.rise)}
            for name, each in effects.items()
            if name.startswith(f"{skill.name}: ")
        },
    }


def key_space_summary(
    skill: SkillSettings,
    evidence: Evidence,
    decision: Decision,
    limits: Mapping[str, Rate],
    frames: Sequence[FrameCheck],
) -> dict[str, Any]:
    from exporter.methods.key_space.framing import frame_figures

    return {
        "hypercubes": list(evidence.keys.formats),
        "layer": decision.layer,
        "alpha": asdict(decision.alpha),
        "separates": decision.separates,
        "fault": decision.fault,
        "max_false_block": skill.max_false_block,
        "target_block_rate": skill.target_block_rate,
        "blocked": rates(decision.blocked),
        "blocked_in_unseen_formats": rates(decision.blocked_unseen),
        "false_blocks": rates(decision.false_blocks),
        "false_blocks_over_answers": rates(decision.false_answers),
        "everyday_kinds_over_answers": rates(decision.kinds),
        "limits": rates(limits),
        "frames": [frame_figures(check) for check in frames],
        "layers": [
            {
                "layer": row.choice.layer,
                "choose_alpha": row.choice.alpha,
                "choose_false_blocks_over_answers": row.choice.false_blocks,
                "choose_harmless": row.choice.harmless,
                "choose_unseen_alpha": row.choice.unseen_alpha,
                "choose_unseen_false_blocks": row.choice.unseen_false_blocks,
                "margin": row.choice.margin,
                "alpha": row.alpha,
                "blocked": rates(row.blocked),
                "everyday": rates(row.everyday_prompts),
                "retain": rates(row.retain_prompts),
                "over_answers": rates(row.answers),
            }
            for row in decision.table
        ],
    }


def asdict_parts(parts: Any) -> dict[str, Sequence[Any]]:
    """The fields of a parts dataclass, without copying what is in them."""
    return {name: getattr(parts, name) for name in parts.__dataclass_fields__}
