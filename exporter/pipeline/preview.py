"""What an export will do: said before it begins, and all that `unskill export --dry-run` does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from exporter.checkpoint.findings import Plan
from exporter.common.errors import BadInput
from exporter.common.progress import Progress, duration
from exporter.common.text import Notify, literal
from exporter.methods.key_space.region_probe import expected, spread
from exporter.models.prober import Prober
from exporter.pipeline.prepared import Prepared, lines, prepared
from exporter.prompts.formats import Query
from exporter.prompts.skills import SkillPlan

TIMED = 4, 8
"""Prompts that are run before the clock is started, and while it runs."""
EXAMPLES = 3


@dataclass(frozen=True)
class Preview:
    """An export before its model is probed.

    lines: what is said of it; tokens: that go through the model, None where no skill has half-spaces; seconds: that
    this takes, from some prompts that were timed; size: bytes that OUT may take; examples: prompts as the model sees
    them, by kind of turn.
    """

    lines: list[str]
    tokens: int | None
    seconds: float | None
    size: int
    examples: dict[str, list[str]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """All of it, for people."""
        shown = [f"\n{name}:\n{literal(text)}" for name, texts in self.examples.items() for text in texts]
        took = (
            [f"about {duration(self.seconds)} on this machine, before the checkpoint is written"]
            if self.seconds
            else []
        )
        return "\n".join([*self.lines, *took, *shown])


def preview(planned: Plan, notify: Notify) -> Preview:
    """Load the model, prepare the prompts and time some of them; nothing is written. Raises BadInput as an export."""
    if any(each.skill.to_write for each in planned.skills):
        raise BadInput(
            "--dry-run: --describe has its prompts written first; give --read-prompts FILE of --save-prompts"
        )
    planned = replace(planned, settings=replace(planned.settings, cache=False))  # nothing is kept
    ready = prepared(planned, notify, Progress(planned.settings.quiet))
    found = [(plan.parts, plan.skill) for plan in ready.plans if plan.parts is not None]
    stages = [stage for parts, skill in found for stage in expected(ready.prober, parts, skill)]
    tokens = sum(work for _, work in stages)
    seconds = tokens / speed(ready.prober, queries_of(ready.plans)) if stages else None
    return Preview(lines(planned, ready), round(tokens) if stages else None, seconds, planned.size, examples(ready))


def queries_of(plans: Sequence[SkillPlan]) -> list[Query]:
    return [query for plan in plans if plan.parts is not None for query in plan.parts.fit.answered]


def speed(prober: Prober, queries: Sequence[Query]) -> float:
    """Tokens in a second, of a forward through all layers."""
    warm, timed = (spread(queries, count) for count in TIMED)
    alone = replace(prober, kept=None, progress=Progress())
    for _ in alone.last_token_keys(warm, "warm"):
        pass
    begun = time.perf_counter()
    for _ in alone.last_token_keys(timed, "timed"):
        pass
    return alone.work(timed, 1.0) / (time.perf_counter() - begun)


def examples(ready: Prepared) -> dict[str, list[str]]:
    """Some prompts of the skills as the model sees them, special tokens included, by kind of turn."""
    found: dict[str, list[str]] = {}
    for plan in ready.plans:
        asked = plan.forget.report if plan.parts is None else plan.parts.report.asked
        for query in asked:
            texts = found.setdefault(query.format, [])
            if len(texts) < EXAMPLES:
                texts.append(ready.loaded.tokenizer.decode(query.ids))
    return found
