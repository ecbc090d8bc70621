"""Warnings about what an export found, each with its figures and what to do about it. None of them stops it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from scipy.stats import hypergeom

from exporter.checkpoint.summary import ExportWarning, SharedLayer, SharedSummary
from exporter.methods.key_space.calibration import scores_for
from exporter.methods.key_space.evidence import Decision
from exporter.methods.key_space.framing import FrameCheck
from exporter.methods.neurons.choice import TextEffect, TextSet
from exporter.methods.neurons.scores import NeuronChanges
from exporter.methods.outcome import SkillOutcome
from exporter.pipeline.region_warnings import of_regions
from exporter.prompts.frames import Frame, Pieces
from exporter.prompts.splits import forget_prompts_for
from exporter.recipes.settings import SkillSettings

FORGETS_LITTLE = 1.1
"""Perplexity of forget texts, as a multiple of the base model's, below which neurons have next to no effect."""
SHARED_MUCH = 0.25
"""Share of a skill's neurons that another one may change too."""
BY_CHANCE = 0.01
"""Random sets of neurons share as many with a probability below this: not by chance."""

Shared = tuple[SharedSummary, float]
"""Neurons that two skills both change, and the probability that random sets of these sizes share as many."""


def of_outcomes(
    outcomes: Sequence[SkillOutcome], effects: Mapping[TextSet, TextEffect], shared: Sequence[Shared]
) -> list[ExportWarning]:
    """All warnings about what was found. effects: of the report part's texts, by skill and side."""
    found: list[ExportWarning | None] = []
    for outcome in outcomes:
        skill, prompts = outcome.skill, sum(map(len, vars(outcome.plan.forget).values()))
        if outcome.decision is not None:
            found.append(small_calibration(skill, outcome.decision, prompts))
            found += [frame_alone(skill, check) for check in outcome.frames]
        if outcome.detection is not None:
            found += of_regions(skill, outcome.detection)
        if outcome.neurons is not None:
            found.append(forgets_little(skill, effects[skill.name, "forget"]))
    found += [many_shared(*each) for each in shared]
    return [*filter(None, found)]


def small_calibration(skill: SkillSettings, decision: Decision, prompts: int) -> ExportWarning | None:
    """Fewer forget prompts calibrate alpha than the target block rate needs. prompts: all of the skill's."""
    alpha, target = decision.alpha, skill.target_block_rate
    if alpha.promise is None or alpha.promise >= target:
        return None
    scores = scores_for(target)
    needed = forget_prompts_for(scores)
    return ExportWarning(
        code="calibration",
        skill=skill.name,
        message=f"alpha promises {alpha.promise:.1%} of further prompts, less than --target-block-rate {target}, "
        f"because {alpha.calibrated_on} prompts calibrate it and {scores} are needed: give {needed} different forget "
        f"prompts instead of {prompts}",
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
    """Harmless prompts are inside the hypercube once they begin and end as forget prompts do.

    Only where the whole interval is above --max-false-block and above the rate of the same prompts as they are.
    """
    framed, bare, found = check.framed, check.bare, check.found
    if not framed.total or framed.low <= max(skill.max_false_block, bare.rate):
        return None
    return ExportWarning(
        code="frame",
        skill=skill.name,
        message=f"the hypercube may know the frame of the prompts rather than the skill: {found.having} of "
        f"{found.prompts} forget prompts of {' and '.join(found.sources)} {describe(found.frame)}, as do "
        f"{check.retain_having} of {check.retain} retain and everyday prompts, and {framed.hits} of {framed.total} "
        f"others ({100 * framed.low:.1f} - {100 * framed.high:.1f} %) are inside once they are put into that frame, "
        f"{bare.hits} as they are (--max-false-block {skill.max_false_block}): give retain prompts the same frame, as "
        "by template=, or forget prompts several",
        figures=check.figures(),
    )


def describe(frame: Frame) -> str:
    """A frame in words, without its text."""
    sides = (("begin", frame.start), ("end", frame.end))
    return " and ".join(f"{verb} with the same {size(side)}" for verb, side in sides if side)


def size(side: Pieces) -> str:
    words = sum(any(map(str.isalnum, piece)) for piece in side)
    count, what = (words, "word") if words else (len(side), "character")
    return what if count == 1 else f"{count} {what}s"


def forgets_little(skill: SkillSettings, effect: TextEffect) -> ExportWarning | None:
    """Held-out forget texts are hardly less likely than before. effect: of the report part."""
    ratio = math.exp(effect.rise)
    if ratio >= FORGETS_LITTLE:
        return None
    todo = "allow a greater --max-retain-loss, give more varied retain texts"
    todo += ", or use --no-everyday" if skill.everyday else ""
    if skill.beta is not None:
        todo = "give a greater --beta, or auto"
    return ExportWarning(
        code="forgets-little",
        skill=skill.name,
        message=f"the changed neurons forget next to nothing: the perplexity of {effect.texts} held-out forget "
        f"texts is x{ratio:.3f} of the base model's, less than x{FORGETS_LITTLE}: {todo}",
        figures={"perplexity_ratio": ratio, "texts": effect.texts, "least": FORGETS_LITTLE},
    )


def shared_neurons(outcomes: Sequence[SkillOutcome]) -> list[Shared]:
    """For every two skills that change neurons, how many they share."""
    chosen = [(outcome.skill.name, outcome.neurons) for outcome in outcomes if outcome.neurons is not None]
    found = []
    for (one, ours), (other, theirs) in combinations(chosen, 2):
        mine, yours = by_layer(ours.changes), by_layer(theirs.changes)
        layers = {
            str(layer): SharedLayer(
                **shares(len(mine[layer] & yours[layer]), min(len(mine[layer]), len(yours[layer])))
            )
            for layer in sorted({*mine, *yours})
        }
        shared = sum(each.shared for each in layers.values())
        sizes, everything = (ours.changes.count(), theirs.changes.count()), ours.forget.gaussian.mean.numel()
        by_chance = sizes[0] * sizes[1] / everything
        summary = SharedSummary(**shares(shared, min(sizes)), skills=(one, other), by_chance=by_chance, layers=layers)
        found.append((summary, float(hypergeom.sf(shared - 1, everything, *sizes))))
    return found


def shares(shared: int, smaller: int) -> dict[str, Any]:
    return {"shared": shared, "smaller": smaller, "share": shared / smaller if smaller else 0.0}


def by_layer(changes: NeuronChanges) -> defaultdict[int, set[int]]:
    """Numbers of the neurons that are adjusted or pruned."""
    found = defaultdict(set, {layer: set(each.index.tolist()) for layer, each in changes.adjusted.items()})
    for layer, index in changes.pruned.items():
        found[layer].update(index.tolist())
    return found


def many_shared(found: SharedSummary, chance: float) -> ExportWarning | None:
    if found.share < SHARED_MUCH or chance >= BY_CHANCE:
        return None
    return ExportWarning(
        code="shared-neurons",
        skill=None,
        message=f"{' and '.join(found.skills)} share {found.shared} neurons, {found.share:.0%} of the smaller set's "
        f"{found.smaller} (by chance {found.by_chance:.1f}); each is moved only for the skill whose texts it "
        "separates better, or is zero where one prunes it: check above that the texts of both lose enough, or make "
        "them one skill",
        figures=found.model_dump(mode="json", exclude={"layers"}),
    )
