"""What the skills of one checkpoint block together: each promise is of one skill alone, and false blocks add up."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.common.rates import Rate, rate
from exporter.methods.key_space.region_probe import region_scores
from exporter.methods.key_space.scoring import score_keys
from exporter.methods.outcome import SkillOutcome
from exporter.models.prober import KeyProber
from exporter.prompts.formats import Query
from exporter.prompts.packaged import EVERYDAY
from exporter.prompts.packaged_skills import is_near_miss, packaged_skill
from exporter.prompts.skills import SkillPrompts
from exporter.prompts.sources import Prompt
from exporter.prompts.turns import FIT, REPORT

Ids = tuple[int, ...]


def blocked_by_any(prober: KeyProber, outcomes: Sequence[SkillOutcome]) -> Rate | None:
    """The share of harmless prompts of all report parts whose last token any skill blocks; None unless several block.

    As plain messages, of skills with hypercubes in the format that each prompt has. Harmless is what no skill claims;
    near misses do not count. A prompt that another skill was fitted on counts by its score along directions that had
    not seen it.
    """
    blocking = [outcome for outcome in outcomes if outcome.skill.blocks]
    if len(blocking) < 2:
        return None
    queries = harmless([outcome.plan.prompts for outcome in outcomes], blocking)
    decided = [stored_hits(outcome) for outcome in blocking]
    for outcome, known in zip(blocking, decided, strict=True):
        fitted = fitted_on(outcome)
        queries = [query for query in queries if query.ids in known or query.prompt not in fitted]
    blocked = dict.fromkeys((query.prompt for query in queries), False)
    for outcome, known in zip(blocking, decided, strict=True):
        new = [query for query in queries if query.ids not in known]
        known |= zip((query.ids for query in new), new_hits(prober, outcome, new), strict=True)
        for query in queries:
            blocked[query.prompt] |= known[query.ids]
    return rate(sum(blocked.values()), len(blocked))


def harmless(skills: Sequence[SkillPrompts], blocking: Sequence[SkillOutcome]) -> list[Query]:
    """The report parts' queries that are to be answered, without repetitions, but for near misses and what some skill
    claims: its forget prompts, and packaged prompts that belong to it by its settings or its page."""
    forget = {prompt.text for skill in skills for prompt in skill.forget}
    everyday = [{prompt.text for prompt in skill.retain} for skill in skills if skill.skill.everyday]
    packaged = [packaged_skill(name) for skill in skills for name in skill.skill.packaged]
    shared = {(f"skill {other}", row) for each in packaged for other, rows in each.shared_rows.items() for row in rows}

    def claimed(prompt: Prompt) -> bool:
        left_out = prompt.source == EVERYDAY and not all(prompt.text in texts for texts in everyday)
        return left_out or prompt.text in forget or (prompt.source, prompt.row) in shared

    found = {query.ids: query for outcome in blocking for query in outcome.plan.retain.report}
    return [query for query in found.values() if not is_near_miss(query.prompt) and not claimed(query.prompt)]


def fitted_on(outcome: SkillOutcome) -> set[Prompt]:
    """The harmless prompts that a skill's regions were fitted on; hypercubes are fitted on none."""
    found = outcome.detection
    return set() if found is None else {query.prompt.given for query in found.parts.fit.answered}


def stored_hits(outcome: SkillOutcome) -> dict[Ids, bool]:
    """Which harmless queries a skill blocks, by their token ids: of those that it has scored without a fit on them."""
    queries: list[Query] = []
    hits: list[bool] = []
    if (found := outcome.detection) is not None:
        for part in (FIT, REPORT):
            queries += getattr(found.parts, part).answered
            hits += (found.scores[part].answered <= found.threshold).tolist()
    if (evidence := outcome.evidence) is not None and (decision := outcome.decision) is not None:
        queries += evidence.retain_parts.report
        hits += (evidence.retain_report.prompt[:, decision.layer] <= decision.alpha.value).tolist()
    return dict(zip((query.ids for query in queries), hits, strict=True))


def new_hits(prober: KeyProber, outcome: SkillOutcome, queries: Sequence[Query]) -> list[bool]:
    """Which of some other queries a skill blocks. Raises RunFailed on NaN."""
    what = f"{outcome.skill.name}: harmless prompts of the other skills"
    hits: list[bool] = []
    if (found := outcome.detection) is not None:
        hits += (region_scores(prober, queries, found.regions, what) <= found.threshold).tolist()
    if (evidence := outcome.evidence) is not None and (decision := outcome.decision) is not None:
        scores = score_keys(prober, queries, evidence.keys, what)
        hits += (scores[:, decision.layer] <= decision.alpha.value).tolist()
    return hits
