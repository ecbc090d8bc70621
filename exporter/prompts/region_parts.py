"""The parts of a skill with regions along discriminants: every prompt in several kinds of turn, and renderings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exporter.prompts.formats import PLAIN, Query
from exporter.prompts.renderings import AS_GIVEN, FORMS, as_given, rendered
from exporter.prompts.sources import Prompt
from exporter.prompts.turns import FIT, PLAIN_SHARES, REPORT, Turns, some
from exporter.recipes.effort import Effort

RENDERED_EVERY = 3
"""Of so many harmless prompts one is rendered too, where the user's own prompts are: a greeting is no sign of a
skill."""


@dataclass(frozen=True)
class Part:
    """Queries of one part: forget prompts as they are asked, what is to be answered, and packaged messages after a
    refusal, to be answered too."""

    asked: tuple[Query, ...]
    answered: tuple[Query, ...]
    after: tuple[Query, ...]


SIDES = {"asked": "forget", "answered": "retain", "after": "after"}
"""What the fields of a `Part` are called in `reproduce/`."""


@dataclass(frozen=True)
class RegionParts:
    """Disjoint parts of both sides, each prompt in several kinds of turn. places: where the last token of a query is,
    by its format; effort: how many of them."""

    fit: Part
    report: Part
    places: Mapping[str, str]
    effort: Effort

    def plain(self, side: str) -> dict[str, tuple[Query, ...]]:
        """By part, every prompt of a side once: as given, in a plain message."""
        parts = {FIT: self.fit, REPORT: self.report}
        return {
            name: tuple(query for query in getattr(part, side) if query.format == PLAIN)
            for name, part in parts.items()
        }


def make_parts(
    forget: Mapping[str, Sequence[Prompt]],
    retain: Mapping[str, Sequence[Prompt]],
    turns: Turns,
    seed: int,
    effort: Effort,
) -> RegionParts:
    """The parts, from the prompts of both sides by part.

    Forget prompts without a form are the user's own, and are rendered too: in the fit part in every form that applies,
    in the others in one. No rendering is a prompt, or in two parts.
    """
    taken = {prompt.text for side in (forget, retain) for part in side.values() for prompt in part}
    found = {}
    for part in (FIT, REPORT):
        prompts = [as_given(prompt) for prompt in forget[part]]
        own = [prompt for prompt in prompts if prompt.form == AS_GIVEN]
        asked = [query for prompt in prompts for query in turns.asked(prompt, part)]
        asked += turns.rendered(rendered(own, part, seed, taken, len(FORMS) if part == FIT else 1))
        answered = [query for prompt in retain[part] for query in turns.answered(prompt, part)]
        if own:
            others = [prompt for prompt in retain[part] if prompt.form is None][::RENDERED_EVERY]
            answered += turns.rendered(rendered(others, part, seed, taken, 1))
        after = (*turns.after_refusal(prompts, part), *turns.after_answer(part))
        sides = zip((asked, answered, after), getattr(effort, part), PLAIN_SHARES, strict=True)
        found[part] = Part(*(some(side, most, share, turns.plain) for side, most, share in sides))
    return RegionParts(**found, places=turns.places, effort=effort)
