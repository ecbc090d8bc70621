"""What a person is told of an export first: what it refuses, what it refuses in error, and what it misses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from exporter.checkpoint.sentences import neurons_line
from exporter.checkpoint.summary import KeySpaceSummary, SkillSummary, StoredRate
from exporter.recipes.settings import DEFAULT_SKILL

PLAIN, ALL = "plain", "all"
ENOUGH = 5
"""Prompts of a form or kind of turn, of which fewer say nothing."""
NEAR_MISSES, AFTER = " near misses", " after a refusal"
"""How the names of sources end whose prompts are counted by themselves."""


def verdict(skill: SkillSummary) -> list[str]:
    """One line for each of these, of prompts that nothing was fitted or chosen on."""
    lines = [] if skill.neurons is None else [neurons_line(skill.neurons, skill.method)]
    if (found := skill.key_space) is None:
        return lines
    fault = [] if found.fault is None else [f"NOT SEPARATED: {found.fault}."]
    missed = missed_line(found)
    return [*lines, *fault, refused_line(skill.name, found), error_line(found), *([missed] if missed else [])]


def refused_line(name: str, found: KeySpaceSummary) -> str:
    """How many of the skill's own prompts are refused, and the form of which fewest are."""
    kind = PLAIN if all(PLAIN in formats for formats in found.blocked.values()) else ALL
    own = total(formats[kind] for formats in found.blocked.values())
    where = " that come as first messages" if kind == PLAIN else ""
    interval = ""
    if len(found.blocked) == 1:
        (rate,) = (formats[kind] for formats in found.blocked.values())
        interval = f" ({rate.low:.0%} to {rate.high:.0%})"
    whose = "forget" if name == DEFAULT_SKILL else name
    text = f"Refuses {of(own)} held-out {whose} prompts{where}{interval}"
    if (regions := found.discriminant) is not None:
        forms = {form: pair(rates[ALL]) for form, rates in regions.forms.items() if rates[ALL].total >= ENOUGH}
        if len(forms) > 1:
            text += f"; of its {len(forms)} forms, over all kinds of turn, fewest of {worst(forms)}"
    return f"{text}."


def error_line(found: KeySpaceSummary) -> str:
    """How many prompts that must be answered are refused."""
    kinds: dict[str, list[StoredRate]] = {"other prompts": [], "near misses": [], "messages after a refusal": []}
    for source, formats in found.false_blocks.items():
        kind = (
            "near misses"
            if source.endswith(NEAR_MISSES)
            else "messages after a refusal"
            if source.endswith(AFTER)
            else "other prompts"
        )
        kinds[kind].append(formats[ALL])
    counts = [f"{of(total(rates))} {kind}" for kind, rates in kinds.items() if rates]
    if (regions := found.discriminant) is not None and regions.answer_tokens:
        counts.append(f"a position of {of(pair(regions.answers))} answers to others")
    return f"Refuses in error {', '.join(counts) or 'nothing that was looked at'}."


def missed_line(found: KeySpaceSummary) -> str:
    """How many are refused where they are asked otherwise."""
    asked: dict[str, list[StoredRate]] = {}
    for formats in found.blocked.values():
        for name, rate in formats.items():
            if name not in (PLAIN, ALL):
                asked.setdefault(name, []).append(rate)
    counts = {name: total(rates) for name, rates in asked.items()} | {
        name: pair(rate) for name, rate in found.limits.items()
    }
    listed = sorted(counts.items(), key=lambda each: -share(each[1]))
    return "Asked otherwise: " + ", ".join(f"{name} {of(count)}" for name, count in listed) + "." if listed else ""


def pair(rate: StoredRate) -> tuple[int, int]:
    return rate.hits, rate.total


def total(rates: Iterable[StoredRate]) -> tuple[int, int]:
    pairs = [pair(rate) for rate in rates]
    return sum(hits for hits, _ in pairs), sum(all_ for _, all_ in pairs)


def of(count: tuple[int, int]) -> str:
    """As 3 of 40."""
    return f"{count[0]} of {count[1]}"


def share(count: tuple[int, int]) -> float:
    return count[0] / count[1] if count[1] else 0.0


def worst(counts: Mapping[str, tuple[int, int]]) -> str:
    """The name with the least share, and its count."""
    name = min(counts, key=lambda each: share(counts[each]))
    return f"{name}, {of(counts[name])}"
