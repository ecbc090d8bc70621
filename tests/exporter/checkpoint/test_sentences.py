"""What a promise says of where its prompts come from."""

from __future__ import annotations

import pytest

from exporter.checkpoint.sentences import promise
from exporter.checkpoint.summary import (
    AlphaSummary,
    DiscriminantSummary,
    LayerTrialSummary,
    PromiseSummary,
    StoredRate,
)
from exporter.common.rates import rate

ALPHA = AlphaSummary(value=2.0, calibrated_on=50, promise=0.9, confidence=0.9)
SAME = "further prompts from the same source and formats are blocked (float32). No promise for other wordings."
WRITTEN = "that this generator writes from the description, in the same formats, are blocked (float32)"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), SAME),
        (("--skill", "--retain"), SAME),
        (("--describe", "--retain"), f"further prompts {WRITTEN}. No promise for what people write."),
        (
            ("--describe", "--forget"),
            f"further prompts from the same source and {WRITTEN}. No promise for what people write.",
        ),
    ],
)
def test_where_prompts_come_from(flags: tuple[str, ...], said: str) -> None:
    assert promise(3, ALPHA, None, "float32", flags=flags).endswith(said)


@pytest.mark.parametrize(
    ("answer_tokens", "neurons", "judged"),
    [
        (0, False, "had not seen it: at least"),
        (64, False, "had not seen it, answers by the final ones: at least"),
        (0, True, "had not seen it, and the neurons were chosen on some of these prompts: at least"),
        (
            64,
            True,
            "had not seen it, answers by the final ones, and the neurons were chosen on some of these prompts:",
        ),
    ],
)
def test_what_had_not_seen_the_prompts_of_a_promise(answer_tokens: int, neurons: bool, judged: str) -> None:
    some, counted = PromiseSummary(hits=5, total=9, bound=0.4), StoredRate.model_validate(rate(0, 9).as_json())
    trial = LayerTrialSummary(layer=3, shrinkage=1.0, blocked={"": 0.5}, mean=0.5, area=0.9, margin=1.0)
    regions = DiscriminantSummary(
        places=("prompt",),
        left_out=trial,
        trials=(trial,),
        **dict.fromkeys(("blocked", "false_blocks", "near_misses", "after_refusals"), some),
        **dict.fromkeys(("answers", "words", "interior"), counted),
        forms={},
        near_miss_forms={},
        phrases={},
        answer_tokens=answer_tokens,
    )
    assert f"directions that {judged}" in promise(3, ALPHA, None, "float32", regions, neurons=neurons)
