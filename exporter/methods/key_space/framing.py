"""Whether a hypercube knows the frame of the prompts instead of the skill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.common.rates import Rate, rate
from exporter.methods.key_space.scoring import score_keys
from exporter.prompts.frames import Frame, FramedSource, frames_by_source, frames_lacked

if TYPE_CHECKING:
    from exporter.methods.key_space.evidence import Decision, Evidence
    from exporter.models.prober import Prober
    from exporter.prompts.formats import Formatter


@dataclass(frozen=True)
class FrameCheck:
    """A frame of forget prompts that most retain prompts lack.

    `retain_having` of `retain` retain and everyday prompts have it. Of the others, report part, are inside the
    hypercubes at the last token: `framed`, put into the frame; `bare`, as they are.
    """

    found: FramedSource
    retain_having: int
    retain: int
    framed: Rate
    bare: Rate


def measure_frames(
    prober: Prober, formatter: Formatter, evidence: Evidence, decision: Decision
) -> tuple[FrameCheck, ...]:
    """Score the harmless prompts of the report part in every frame that most of their kind lack.

    Each keeps its format; one that is longer than the model's context in a frame is not counted. Raises RunFailed on
    NaN.
    """
    parts, report = evidence.forget_parts, evidence.retain_parts.report
    forget = [query.prompt for query in (*parts.fit, *parts.choose, *parts.calibrate, *parts.report)]
    retain = [query.prompt for query in (*evidence.retain_parts.choose, *report)]
    own = {name: source.frame for source in frames_by_source(retain) for name in source.sources}
    layer, alpha = decision.layer, decision.alpha.value

    def inside(scores: list[float]) -> Rate:
        return rate(sum(score <= alpha for score in scores), len(scores))

    checks = []
    for found in frames_lacked(forget, retain):
        frame = found.frame
        rows, queries = [], []
        for row, query in enumerate(report):
            if frame.holds(query.prompt.text):
                continue
            framed = formatter.like(query, frame.put(query.prompt.text, own.get(query.prompt.source, Frame())))
            if framed is not None:
                rows.append(row)
                queries.append(framed)
        scores = score_keys(prober, queries, evidence.keys, "retain and everyday: report, framed as forget prompts")
        checks.append(
            FrameCheck(
                found,
                sum(frame.holds(prompt.text) for prompt in retain),
                len(retain),
                inside(scores[:, layer].tolist()),
                inside(evidence.retain_report.prompt[rows, layer].tolist()),
            )
        )
    return tuple(checks)


def frame_figures(check: FrameCheck) -> dict[str, Any]:
    """A checked frame as JSON: its sizes in characters, for its text is text of prompts."""
    found = check.found
    return {
        "sources": list(found.sources),
        "start_characters": len("".join(found.frame.start)),
        "end_characters": len("".join(found.frame.end)),
        "forget_having": found.having,
        "forget": found.prompts,
        "retain_having": check.retain_having,
        "retain": check.retain,
        "framed": check.framed.as_json(),
        "bare": check.bare.as_json(),
    }
