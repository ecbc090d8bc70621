"""What the recipe of an export says of its inputs, and the run that repeats it: are they here, are they the same?

Such a recipe has a table [recorded] with the digests of the base model's files, of the user's own system prompts
(whose texts stay out of a checkpoint) and of the statistics file. Data files have theirs in their sources, as sha256=.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exporter.common.errors import BadInput
from exporter.common.text import Notify


@dataclass(frozen=True)
class Recorded:
    """Digests of what the export read; `versions`: what it was run with, from versions.json beside the recipe.

    `model_given`, `statistics_given`: named on the command line, so that nobody asked for what the export had.
    """

    base: Mapping[str, str] = field(default_factory=dict)
    system_prompts: tuple[str, ...] = ()
    statistics: str | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    model_given: bool = False
    statistics_given: bool = False

    def ordered(self, given: Sequence[str]) -> tuple[str, ...]:
        """The system prompts that are given, in the order of the export. Raises BadInput where they are others."""
        texts = {text_sha256(text): text for text in given}
        missing = sum(digest not in texts for digest in self.system_prompts)
        if missing or set(texts) - set(self.system_prompts):
            raise BadInput(
                f"--system-prompt: the recipe's export had {len(self.system_prompts)} of its own, of which "
                f"{missing or 'none'} {'is' if missing == 1 else 'are'} missing here, and "
                f"{len(set(texts) - set(self.system_prompts))} are not its own; give the same texts (it has their "
                "sha256 only)"
            )
        return tuple(texts[digest] for digest in self.system_prompts)

    def compare(self, present: Mapping[str, Any], notify: Notify) -> None:
        """Tell of versions, processor and threads that are not those of the export."""
        names = sorted({*present, *self.versions} - {"batches_halved"})
        other = [name for name in names if self.versions and present.get(name) != self.versions.get(name)]
        if other:
            told = ", ".join(f"{name} {self.versions.get(name)} (here {present.get(name)})" for name in other)
            notify(f"The recipe's export was made with {told}: the interventions may differ in their last bits.")
        if self.versions.get("batches_halved"):
            notify(
                "Memory ran out in the recipe's export, and batches were halved: the interventions may differ in "
                "their last bits."
            )


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
