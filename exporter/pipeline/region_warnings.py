"""Warnings about what regions along discriminants hold, each with its figures and what to do about it."""

from __future__ import annotations

from exporter.checkpoint.summary import ExportWarning
from exporter.common.text import counted
from exporter.methods.key_space.budget import at_least, prompts_within
from exporter.methods.key_space.calibration import scores_for
from exporter.methods.key_space.detection import LEAST_OF_PLACE, Detection
from exporter.prompts.formats import PLAIN
from exporter.prompts.skills import MINIMUM_FORGET
from exporter.prompts.turns import DEAL, FIT, RENDERED
from exporter.recipes.settings import SkillSettings

MISSED = 0.5
"""Share of a form, left out of the fit, below which an export says that it would miss it."""
TURN_MISSED, TURN_AT_LEAST = 0.25, 5
"""Share of a kind of turn below which it is missed, where at least so many prompts are in it."""


def of_regions(skill: SkillSettings, found: Detection) -> list[ExportWarning | None]:
    """All warnings about one skill's regions."""
    checks = (
        few_prompts,
        blocks_little,
        few_harmless,
        one_source,
        misses_forms,
        places_uncovered,
        misses_turns,
        reads_words,
    )
    return [check(skill, found) for check in checks]


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
    return dealt_for(scores_for(target))


def dealt_for(fitted: int) -> int:
    """The least number of prompts of which so many fall to the fit part."""
    return -(-fitted * len(DEAL) // DEAL.count(FIT))


def one_source(skill: SkillSettings, found: Detection) -> ExportWarning | None:
    """All forget prompts are of one source of the user's, so nothing shows what becomes of others."""
    sources = {query.prompt.source for query in found.parts.fit.asked}
    if skill.packaged or skill.describe is not None or len(sources) != 1:
        return None
    (source,) = sources
    return ExportWarning(
        code="one-source",
        skill=skill.name,
        message=f"all forget prompts are of {source}: asking as nobody there does (in other languages, as keywords, "
        "in a chat, inside other material) was neither fitted nor tried, and often gets through; add two dozen varied "
        "prompts from elsewhere to --forget, or --skill NAME where a packaged one is meant (unskill skills)",
        figures={"source": source},
    )


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


def few_harmless(skill: SkillSettings, found: Detection) -> ExportWarning | None:
    """Too few prompts that are to be answered for the budget: none of them is inside, and yet its bound is wider."""
    promise, budget = found.false_blocks, skill.max_false_block
    # Of a budget of 0 no number of prompts is enough.
    if skill.alpha is not None or promise.hits or promise.bound <= budget or not budget:
        return None
    needed = prompts_within(budget, len(found.regions.places))
    todo = f"give {dealt_for(needed - promise.total)} more retain prompts"
    if len(found.parts.fit.answered) >= found.parts.effort.fit[1]:
        todo = "a greater --effort looks at more"
    return ExportWarning(
        code="few-harmless",
        skill=skill.name,
        message=f"at most {promise.bound:.2%} of further prompts that are to be answered are blocked, which is more "
        f"than --max-false-block {budget}, although none of the {promise.total} prompts of the fit part is inside: "
        f"{needed} would be needed there to show it; {todo}",
        figures={
            "bound": promise.bound,
            "max_false_block": budget,
            "prompts": promise.total,
            "prompts_needed": needed,
        },
    )


def misses_turns(skill: SkillSettings, found: Detection) -> ExportWarning | None:
    """Kinds of turn, but for plain messages, in which most of the report part's forget prompts are answered."""
    turns = found.rates("asked", lambda query: "turns", lambda query: query.format not in (PLAIN, RENDERED))
    missed = {
        name: each
        for name, each in turns.get("turns", {}).items()
        if name != "all" and each.total >= TURN_AT_LEAST and each.rate < TURN_MISSED
    }
    if not missed:
        return None
    named = ", ".join(f"{name} ({each.hits} of {each.total})" for name, each in missed.items())
    return ExportWarning(
        code="turns",
        skill=skill.name,
        message=f"less than {TURN_MISSED:.0%} of the report part's forget prompts are blocked in "
        f"{counted(len(missed), 'kind')} of turn: {named}; who asks for the skill like that is mostly answered: more "
        "and more varied forget prompts, a larger model or larger budgets would block more",
        figures={"missed": {name: each.as_json() for name, each in missed.items()}, "least": TURN_MISSED},
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
