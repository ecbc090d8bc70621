"""Whether a hypercube recognises the frame of the prompts instead of the skill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exporter.common.rates import Rate
from exporter.methods.key_space.evidence import Decision, Evidence, rate_within
from exporter.methods.key_space.scoring import score_keys
from exporter.models.prober import Prober
from exporter.prompts.formats import Formatter
from exporter.prompts.frames import Frame, FramedSource, frames, frames_lacked


@dataclass(frozen=True)
class FrameCheck:
    """A frame of forget prompts that most retain prompts lack.

    `retain_having` of `retain` retain and everyday prompts have it. Rates of the others, report part, inside the
    hypercubes at the last token: `framed`, put into the frame; `bare`, as they are.
    """

    found: FramedSource
    retain_having: int
    retain: int
    framed: Rate
    bare: Rate

    def figures(self) -> dict[str, Any]:
        """As JSON: the frame by its sizes in characters, because its text is text of prompts."""
        return {
            "sources": list(self.found.sources),
            "start_characters": len("".join(self.found.frame.start)),
            "end_characters": len("".join(self.found.frame.end)),
            "forget_having": self.found.having,
            "forget": self.found.prompts,
            "retain_having": self.retain_having,
            "retain": self.retain,
            "framed": self.framed.as_json(),
            "bare": self.bare.as_json(),
        }


def measure_frames(
    prober: Prober, formatter: Formatter, evidence: Evidence, decision: Decision
) -> tuple[FrameCheck, ...]:
    """Score the harmless prompts of the report part in every frame that most harmless prompts lack.

    Each keeps its format; one that exceeds the model's context in a frame is not counted. Raises RunFailed on NaN.
    """
    forget, retain = (
        [query.prompt for part in vars(parts).values() for query in part]
        for parts in (evidence.forget_parts, evidence.retain_parts)
    )
    own = frames(retain)
    layer, alpha = decision.layer, decision.alpha.value
    checks = []
    for found in frames_lacked(forget, retain):
        frame, framed = found.frame, {}
        for row, query in enumerate(evidence.retain_parts.report):
            text = query.prompt.text
            if not frame.holds(text):
                framed[row] = formatter.like(query, frame.put(text, own.get(query.prompt.source, Frame())))
        queries = {row: query for row, query in framed.items() if query is not None}
        what = "retain and everyday: report, framed as forget prompts"
        scores = score_keys(prober, list(queries.values()), evidence.keys, what)
        bare = evidence.retain_report.prompt[list(queries)]
        checks.append(
            FrameCheck(
                found,
                sum(frame.holds(prompt.text) for prompt in retain),
                len(retain),
                *(rate_within(each[:, layer], alpha) for each in (scores, bare)),
            )
        )
    return tuple(checks)
