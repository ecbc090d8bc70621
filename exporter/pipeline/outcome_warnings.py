"""Warnings about what an export found, each with its figures and what to do about it. None of them stops it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from scipy.stats import hypergeom

from exporter.checkpoint.summary import ExportWarning, SharedLayer, SharedSummary
from exporter.common.text import counted
from exporter.methods.key_space.budget import at_least
from exporter.methods.key_space.calibration import scores_for
from exporter.methods.key_space.detection import LEAST_OF_PLACE, Detection
from exporter.methods.key_space.evidence import Decision
from exporter.methods.key_space.framing import FrameCheck
from exporter.methods.neurons.choice import TextEffect, TextSet
from exporter.methods.neurons.scores import NeuronChanges
from exporter.methods.outcome import SkillOutcome
from exporter.prompts.frames import Frame, Pieces
from exporter.prompts.skills import MINIMUM_FORGET
from exporter.prompts.splits import forget_prompts_for
from exporter.prompts.turns import DEAL, FIT
from exporter.recipes.settings import SkillSettings

FORGETS_LITTLE = 1.1
"""Perplexity of forget texts, as a multiple of the base model's, below which neurons have next to no effect."""
SHARED_MUCH = 0.25
"""Share of a skill's neurons that another one may change too."""
MISSED = 0.5
"""Share of a form, left out of the fit, below which an export says that it would miss it."""
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
            few, little = few_prompts(skill, outcome.detection), blocks_little(skill, outcome.detection)
            found += [few, little, misses_forms(skill, outcome.detection), places_uncovered(skill, outcome.detection)]
            found.append(reads_words(skill, outcome.detection))
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


def few_prompts(skill: SkillSettings, found: Detection) -> ExportWarning | None:
    """Too few forget prompts for the target block rate: fewer than hypercubes need, or with all of them blocked."""
    fitted, report = map(len, found.parts.plain("asked").values())
    prompts, best, target = fitted + report, at_least(fitted, fitted).bound, skill.target_block_rate
    if skill.alpha is not None or best >= target:
        return None
    if prompts >= MINIMUM_FORGET and found.blocked.hits < fitted:
        return None
    return ExportWarning(
        code="few-prompts",
        skill=skill.name,
        message=f"{prompts} forget prompts are few: {report} are reported on, and {fitted} fitted on, which promise "
        f"that at least {best:.1%} of further prompts are blocked where all {fitted} are, and less otherwise; "
        f"{prompts_for(target)} allow a --target-block-rate of {target}",
        figures={"prompts": prompts, "fit": fitted, "report": report, "best_promise": best},
    )


def prompts_for(target: float) -> int:
    """The least number of forget prompts whose fit part can promise a block rate."""
    return -(-scores_for(target) * len(DEAL) // DEAL.count(FIT))


def misses_forms(skill: SkillSettings, found: Detection) -> ExportWarning | None:
    """Forms of the user's own prompts of which less than half is blocked by a fit that has not seen them."""
    left_out = found.chosen.blocked
    missed = {form: share for form, share in left_out.items() if form and share < MISSED}
    if not skill.forget or not missed:
        return None
    named = ", ".join(f"{form} ({share:.0%})" for form, share in missed.items())
    return ExportWarning(
        code="forms",
        skill=skill.name,
        message=f"less than {MISSED:.0%} is blocked of {counted(len(missed), 'form')} of the forget prompts where "
        f"nothing is fitted on it: {named}; forms as different that no prompt has are missed too, so add prompts of "
        "your own to --forget in these and in all other forms in which the skill is asked for",
        figures={"left_out": dict(left_out), "missed": list(missed), "least": MISSED},
    )


def blocks_little(skill: SkillSettings, found: Detection) -> ExportWarning | None:
    """The budgets for false blocks leave less than the target block rate."""
    blocked, target = found.blocked, skill.target_block_rate
    if skill.alpha is not None or blocked.bound >= target or blocked.hits == blocked.total:
        return None
    return ExportWarning(
        code="blocked",
        skill=skill.name,
        message=f"at least {blocked.bound:.1%} of further prompts are blocked ({blocked.hits} of {blocked.total} "
        f"prompts), less than --target-block-rate {target}: --max-false-block {skill.max_false_block} and "
        f"--max-near-miss {skill.max_near_miss} leave no more on this model; more and more varied forget prompts, a "
        "larger model or a larger budget would",
        figures={"hits": blocked.hits, "total": blocked.total, "promise": blocked.bound, "target_block_rate": target},
    )


def reads_words(skill: SkillSettings, found: Detection) -> ExportWarning | None:
    """The words of the prompts alone tell the skill as well as the model's keys do, within the 95 % interval."""
    plain, words = found.plain, found.words
    if skill.alpha is not None or not words.total or words.rate < plain.low:
        return None
    return ExportWarning(
        code="words",
        skill=skill.name,
        message=f"the detector may read words rather than the skill: {plain.hits} of {plain.total} plain prompts of "
        f"the report part are blocked, and {words.hits} would be by their words alone, within the same budgets: give "
        "forget prompts in other words, and retain prompts in the same words that are to be answered",
        figures={"blocked": plain.hits, "words": words.hits, "total": plain.total},
    )


def places_uncovered(skill: SkillSettings, found: Detection) -> ExportWarning | None:
    """Places in a conversation that have no region."""
    if not found.uncovered:
        return None
    return ExportWarning(
        code="uncovered",
        skill=skill.name,
        message=f"not covered: {' and '.join(found.uncovered)}; within the budgets for false blocks under "
        f"{LEAST_OF_PLACE:.0%} of what is asked there would be blocked",
        figures={"places": list(found.uncovered)},
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
