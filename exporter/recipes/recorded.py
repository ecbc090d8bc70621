"""What the recipe of an export records of its inputs and environment, for a run that repeats it.

Its table [recorded] has the digests of the base model's files, of the user's own system prompts (whose texts stay out
of a checkpoint), of the statistics file and of the packaged files that were read. Sources have those of data files, as
sha256=.
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
    """Digests of what the export read; `versions`: its environment, from versions.json beside the recipe.

    `packaged`: of packaged files, by name; None in recipes of version 0.1.0, which recorded none.
    `model_given`, `statistics_given`, `described_given`, `packaged_given`: on the command line now, so they may differ
    from the export's; the last says that other packaged files may be read.
    """

    base: Mapping[str, str] = field(default_factory=dict)
    system_prompts: tuple[str, ...] = ()
    statistics: str | None = None
    packaged: Mapping[str, str] | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    model_given: bool = False
    statistics_given: bool = False
    described_given: bool = False
    packaged_given: bool = False

    def ordered(self, given: Sequence[str]) -> tuple[str, ...]:
        """The given system prompts in the order of the export. Raises BadInput if they are not the same ones."""
        texts = {text_sha256(text): text for text in given}
        missing, extra = set(self.system_prompts) - set(texts), set(texts) - set(self.system_prompts)
        if missing or extra:
            raise BadInput(
                f"--system-prompt: of {len(self.system_prompts)} in the recipe's export, {len(missing)} missing here; "
                f"{len(extra)} not among them; give the same texts (the recipe has only their sha256)"
            )
        return tuple(texts[digest] for digest in self.system_prompts)

    def compare(self, present: Mapping[str, Any], notify: Notify) -> None:
        """Notify of versions, processor and threads that differ from the export's."""
        names = sorted({*present, *self.versions} - {"batches_halved"})
        other = [name for name in names if self.versions and present.get(name) != self.versions.get(name)]
        if other:
            differ = ", ".join(f"{name} {self.versions.get(name)} (here {present.get(name)})" for name in other)
            notify(f"The recipe's export was made with {differ}: the interventions may differ in their last bits.")
        if self.versions.get("batches_halved"):
            notify("The recipe's export ran out of memory and halved batches: last bits of interventions may differ.")


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
