"""What a promise says of where its prompts come from."""

from __future__ import annotations

import pytest

from exporter.checkpoint.sentences import promise
from exporter.checkpoint.summary import AlphaSummary

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
