"""What the user asked of an export, checked before anything long begins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import BadInput

DTYPES = ("auto", "float32", "bfloat16", "float16")
METHODS = ("ksd",)
DEFAULT_REFUSAL = "Your query is not valid"


@dataclass(frozen=True)
class ExportSettings:
    """Settings of `unskill export`; the names are those of its flags.

    layer: None chooses one, "last" is the paper's, else a number; alpha: None calibrates it, else deviations.
    """

    model: str
    out: Path
    forget: tuple[str, ...]
    retain: tuple[str, ...] = ()
    method: str = "ksd"
    layer: int | str | None = None
    alpha: float | None = None
    target_block_rate: float = 0.95
    max_false_block: float = 0.01
    refusal: str = DEFAULT_REFUSAL
    prompt_template: str = "auto"
    formats: str = "mixed"
    system_prompts: tuple[str, ...] = ()
    everyday: bool = True
    everyday_without: tuple[str, ...] = ()
    skip_long: bool = False
    seed: int = 0
    dtype: str = "auto"
    device: str = "cpu"
    batch_size: int | None = None
    overwrite: bool = False
    force: bool = False
    link: bool = False
    fingerprints: bool = True
    quiet: bool = False

    def __post_init__(self) -> None:
        """Raises BadInput for values that no export can have."""
        if self.method not in METHODS:
            raise BadInput(f"--method: '{self.method}' is not one of {', '.join(METHODS)}")
        if self.alpha is not None and not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise BadInput(f"--alpha: {self.alpha} is no size of a hypercube; give a number above 0 or auto")
        if not 0 < self.target_block_rate < 1:
            raise BadInput(f"--target-block-rate: {self.target_block_rate} is not between 0 and 1")
        if not 0 <= self.max_false_block <= 1:
            raise BadInput(f"--max-false-block: {self.max_false_block} is not between 0 and 1")
        if self.batch_size is not None and self.batch_size < 1:
            raise BadInput(f"--batch-size: {self.batch_size} is not 1 or more")
        if self.dtype not in DTYPES:
            raise BadInput(f"--dtype: '{self.dtype}' is not one of {', '.join(DTYPES)}")
        if not self.everyday and self.everyday_without:
            raise BadInput("--everyday-without: there are no everyday prompts with --no-everyday; leave one out")
        if not self.everyday and not self.retain and self.layer is None:
            raise BadInput("--no-everyday: without --retain nothing tells the layers apart; give --layer or --retain")

    @property
    def given(self) -> bool:
        """Whether the user fixed layer and alpha, so that fewer prompts do."""
        return self.layer is not None and self.alpha is not None

    def layer_number(self, layers: int) -> int | None:
        """The asked layer's number in a model of so many; None to choose. Raises BadInput out of range."""
        if self.layer is None:
            return None
        number = layers - 1 if self.layer == "last" else int(self.layer)
        if not 0 <= number < layers:
            raise BadInput(f"--layer: {self.layer} is out of range, the model has layers 0 to {layers - 1}")
        return number
