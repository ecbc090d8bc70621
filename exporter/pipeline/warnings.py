"""What an export warns of its findings: each with its figures, and what to do about it. None of them stops it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from scipy.stats import hypergeom

from exporter.checkpoint.summary import ExportWarning, SharedLayer, SharedSummary
from exporter.methods.key_space.calibration import scores_for
from exporter.methods.key_space.framing import FrameCheck, frame_figures
from exporter.prompts.frames import Pieces
from exporter.prompts.splits import forget_prompts_for

if TYPE_CHECKING:
    from exporter.methods.key_space.evidence import Decision
    from exporter.methods.neurons.choice import TextEffect, TextSet
    from exporter.methods.neurons.scores import NeuronChanges
    from exporter.methods.outcome import SkillOutcome
    from exporter.recipes.settings import SkillSettings

FORGETS_LITTLE = 1.1
"""Rise of the perplexity of forget texts below which neurons have next to no effect."""
SHARED_MUCH = 0.25
"""Share of a skill's neurons that another one may change too."""
BY_CHANCE = 0.01
"""Random sets of neurons share that many with a probability below this: no chance."""


@dataclass(frozen=True)
class SharedNeurons:
    """Neurons that two skills both change: how many by layer, as by_chance in all, and of how many of either skill.

    `layers`: by layer the number shared and the smaller of both numbers there. `chance`: the probability that random
    sets of these sizes, drawn from all of the model's neurons, share as many.
    """

    skills: tuple[str, str]
    layers: Mapping[int, tuple[int, int]]
    shared: int
    smaller: int
    by_chance: float
    chance: float

    @property
    def share(self) -> float:
        return self.shared / self.smaller if self.smaller else 0.0

    def summary(self) -> SharedSummary:
        return SharedSummary(
            skills=self.skills,
            shared=self.shared,
            smaller=self.smaller,
            share=self.share,
            by_chance=self.by_chance,
            layers={
                str(layer): SharedLayer(shared=shared, smaller=smaller, share=shared / smaller if smaller else 0.0)
                for layer, (shared, smaller) in self.layers.items()
            },
        )


def of_outcomes(
    outcomes: Sequence[SkillOutcome], effects: Mapping[TextSet, TextEffect], shared: Sequence[SharedNeurons]
) -> list[ExportWarning]:
    """What can be said of what was found. effects: of the report part's texts, by skill and side."""
    found: list[ExportWarning | None] = []
    for outcome in outcomes:
        skill, prompts = outcome.skill, sum(map(len, vars(outcome.plan.forget).values()))
        if outcome.decision is not None:
            found.append(small_calibration(skill, outcome.decision, prompts))
            found += [frame_alone(skill, check) for check in outcome.frames]
        if outcome.neurons is not None:
            found.append(forgets_little(skill, effects[skill.name, "forget"]))
    found += [many_shared(each) for each in shared]
    return [warning for warning in found if warning is not None]


def small_calibration(skill: SkillSettings, decision: Decision, prompts: int) -> ExportWarning | None:
    """Where fewer forget prompts calibrate alpha than the asked block rate needs. prompts: all of the skill's."""
    alpha, target = decision.alpha, skill.target_block_rate
    if alpha.promise is None or alpha.promise >= target:
        return None
    scores = scores_for(target)
    needed = forget_prompts_for(scores)
    return ExportWarning(
        code="calibration",
        skill=skill.name,
        message=f"alpha promises {alpha.promise:.1%} of further prompts, less than --target-block-rate {target}, "
        f"because "
        f"{alpha.calibrated_on} prompts calibrate it and {scores} are needed: give {needed} different forget prompts "
        f"instead of {prompts}",
        figures={
            "promise": alpha.promise,
            "target_block_rate": target,
            "calibrated_on": alpha.calibrated_on,
            "calibration_needed": scores,
            "prompts": prompts,
            "prompts_needed": needed,
        },
    )


def frame_alone(skill: SkillSettings, check: FrameCheck) -> ExportWarning | None:
    """Where harmless prompts are inside the hypercube once they begin and end as forget prompts do.

    Only where that is more, with its whole interval, than --max-false-block and than the same prompts as they are:
    what is inside anyway is not inside by its frame.
    """
    framed, bare, found = check.framed, check.bare, check.found
    if not framed.total or framed.low <= max(skill.max_false_block, bare.rate):
        return None
    return ExportWarning(
        code="frame",
        skill=skill.name,
        message=f"the hypercube may know the frame of the prompts rather than the skill: {found.having} of "
        f"{found.prompts} "
        f"forget prompts of {' and '.join(found.sources)} {describe(found.frame.start, found.frame.end)}, as do "
        f"{check.retain_having} of {check.retain} retain and everyday prompts, and {framed.hits} of {framed.total} "
        f"others ({100 * framed.low:.1f} - {100 * framed.high:.1f} %) are inside once they are put into that frame, "
        f"{bare.hits} as they are (--max-false-block {skill.max_false_block}): give retain prompts the same frame, as "
        "by template=, or forget prompts several",
        figures=frame_figures(check),
    )


def describe(start: Pieces, end: Pieces) -> str:
    """What a frame is, without its text."""
    sides = [f"begin with the same {size(start)}"] if start else []
    sides += [f"end with the same {size(end)}"] if end else []
    return " and ".join(sides)


def size(side: Pieces) -> str:
    count, what = sum(any(map(str.isalnum, piece)) for piece in side), "word"
    if not count:
        count, what = len(side), "character"
    return what if count == 1 else f"{count} {what}s"


def forgets_little(skill: SkillSettings, effect: TextEffect) -> ExportWarning | None:
    """Where held-out forget texts are hardly less likely than before. effect: of the report part."""
    ratio = math.exp(effect.rise)
    if ratio >= FORGETS_LITTLE:
        return None
    if skill.beta is not None:
        todo = "give a greater --beta, or auto"
    else:
        todo = "allow a greater --max-retain-loss, give more varied retain texts"
        todo += ", or take --no-everyday" if skill.everyday else ""
    return ExportWarning(
        code="forgets-little",
        skill=skill.name,
        message=f"the changed neurons forget next to nothing: the perplexity of {effect.texts} held-out forget "
        f"texts is "
        f"x{ratio:.3f} of the base model's, less than x{FORGETS_LITTLE}: {todo}",
        figures={"perplexity_ratio": ratio, "texts": effect.texts, "least": FORGETS_LITTLE},
    )


def shared_neurons(outcomes: Sequence[SkillOutcome]) -> list[SharedNeurons]:
    """For every two skills that change neurons, which they share."""
    chosen = [(outcome.skill.name, outcome.neurons) for outcome in outcomes if outcome.neurons is not None]
    found = []
    for (one, ours), (other, theirs) in combinations(chosen, 2):
        mine, yours = by_layer(ours.changes), by_layer(theirs.changes)
        layers = {
            layer: (
                len(mine.get(layer, set()) & yours.get(layer, set())),
                min(len(mine.get(layer, set())), len(yours.get(layer, set()))),
            )
            for layer in sorted({*mine, *yours})
        }
        shared = sum(both for both, _ in layers.values())
        sizes = ours.changes.count(), theirs.changes.count()
        everything = ours.forget.gaussian.mean.numel()
        chance = float(hypergeom.sf(shared - 1, everything, *sizes))
        by_chance = sizes[0] * sizes[1] / everything
        found.append(SharedNeurons((one, other), layers, shared, min(sizes), by_chance, chance))
    return found


def by_layer(changes: NeuronChanges) -> dict[int, set[int]]:
    """Numbers of the neurons that are adjusted or pruned."""
    found = {layer: set(each.index.tolist()) for layer, each in changes.adjusted.items()}
    for layer, index in changes.pruned.items():
        found.setdefault(layer, set()).update(index.tolist())
    return found


def many_shared(found: SharedNeurons) -> ExportWarning | None:
    if found.share < SHARED_MUCH or found.chance >= BY_CHANCE:
        return None
    one, other = found.skills
    return ExportWarning(
        code="shared-neurons",
        skill=None,
        message=f"{one} and {other} share {found.shared} neurons, {found.share:.0%} of the smaller set's "
        f"{found.smaller} (by "
        f"chance {found.by_chance:.1f}), each of which is moved only for the skill whose texts it parts more, or is "
        "zero where one prunes it: see above whether the texts of both lose enough, or make them one skill",
        figures=found.summary().model_dump(mode="json", exclude={"layers"}),
    )
