"""What the user asked of an export, checked before anything long begins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from exporter.common.errors import BadInput

DTYPES = ("auto", "float32", "bfloat16", "float16")
METHODS = ("ksd", "na", "na+ksd", "sp")
# By their names, so that --help answers without torch; `neuron_selection` has the functions.
SCORES = ("attribution", "signed-mean", "effect-size", "bhattacharyya")
DRAWS = ("sampled", "expected")
COMPATS = ("official",)
DEFAULT_REFUSAL = "Your query is not valid"
DEFAULT_SKILL = "skill"


@dataclass(frozen=True)
class SkillSettings:
    """One skill to forget; the names are those of the flags and of a recipe's [[skill]] tables.

    layer: None chooses one, "last" is the paper's, else a number; alpha: None calibrates it, else deviations;
    beta: None chooses it, else per cent of all neurons; score: None chooses one.
    """

    forget: tuple[str, ...]
    retain: tuple[str, ...] = ()
    name: str = DEFAULT_SKILL
    method: str = "ksd"
    layer: int | str | None = None
    alpha: float | None = None
    target_block_rate: float = 0.95
    max_false_block: float = 0.01
    beta: float | None = None
    score: str | None = None
    max_retain_loss: float = 0.01
    everyday: bool = True
    everyday_without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises BadInput for values that no export can have."""
        if not self.name.strip() or not self.name.isprintable():
            raise BadInput("[[skill]] name: give each skill a name of one line")
        if self.method not in METHODS:
            raise BadInput(f"--method: '{self.method}' is not one of {', '.join(METHODS)}")
        if not self.forget:
            raise BadInput("--forget: name at least one source of example prompts of the skill")
        if self.alpha is not None and not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise BadInput(f"--alpha: {self.alpha} is no size of a hypercube; give a number above 0 or auto")
        if not 0 < self.target_block_rate < 1:
            raise BadInput(f"--target-block-rate: {self.target_block_rate} is not between 0 and 1")
        if not 0 <= self.max_false_block <= 1:
            raise BadInput(f"--max-false-block: {self.max_false_block} is not between 0 and 1")
        if self.beta is not None and not 0 < self.beta <= 100:
            raise BadInput(f"--beta: {self.beta} is no share of the neurons; give per cent above 0 or auto")
        if self.score is not None and self.score not in SCORES:
            raise BadInput(f"--score: '{self.score}' is not one of auto, {', '.join(SCORES)}")
        if self.score is not None and self.prunes:
            raise BadInput("--score: Selective Pruning has one of its own; leave it out with --method sp")
        if not self.max_retain_loss > 0 or math.isinf(self.max_retain_loss):
            raise BadInput(f"--max-retain-loss: {self.max_retain_loss} is not above 0 (nats per token)")
        if self.changes_neurons and not self.retain:
            raise BadInput(
                f"--retain: method {self.method} needs retain texts, against which neurons are chosen; name a source"
            )
        if not self.everyday and self.everyday_without:
            raise BadInput("--everyday-without: there are no everyday prompts with --no-everyday; leave one out")
        if self.blocks and not self.everyday and not self.retain and self.layer is None:
            raise BadInput("--no-everyday: without --retain nothing tells the layers apart; give --layer or --retain")

    @property
    def blocks(self) -> bool:
        """Whether Key Space Detection refuses prompts of this skill."""
        return self.method in ("ksd", "na+ksd")

    @property
    def adjusts(self) -> bool:
        return self.method in ("na", "na+ksd")

    @property
    def prunes(self) -> bool:
        return self.method == "sp"

    @property
    def changes_neurons(self) -> bool:
        """Whether single neurons are adjusted or pruned, for which whole texts are looked at."""
        return self.adjusts or self.prunes

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


def check_running(batch_size: int | None, dtype: str, threads: int | None = None, seed: int = 0) -> None:
    """Raises BadInput for a batch size, dtype, number of threads or seed that no command can have."""
    if not 0 <= seed < 2**63:
        raise BadInput(f"--seed: {seed} is not between 0 and 2 ** 63 - 1")
    if threads is not None and threads < 1:
        raise BadInput(f"--threads: {threads} is not 1 or more")
    if batch_size is not None and batch_size < 1:
        raise BadInput(f"--batch-size: {batch_size} is not 1 or more")
    if dtype not in DTYPES:
        raise BadInput(f"--dtype: '{dtype}' is not one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class ExportSettings:
    """Settings of `unskill export`: the skills, and what holds for all of them.

    revision: branch, tag or commit of a Hub model; batch_size: None for as many rows as there is room for; threads:
    None for as many as torch takes.
    """

    model: str
    out: Path
    skills: tuple[SkillSettings, ...]
    revision: str | None = None
    refusal: str = DEFAULT_REFUSAL
    draws: str = "sampled"
    compat: str | None = None
    statistics: Path | None = None
    prompt_template: str = "auto"
    formats: str = "mixed"
    system_prompts: tuple[str, ...] = ()
    skip_long: bool = False
    seed: int = 0
    dtype: str = "auto"
    device: str = "cpu"
    batch_size: int | None = None
    threads: int | None = None
    overwrite: bool = False
    force: bool = False
    link: bool = False
    fingerprints: bool = True
    figures: bool = True
    quiet: bool = False

    def __post_init__(self) -> None:
        """Raises BadInput for values that no export can have."""
        if not self.skills:
            raise BadInput("--forget: name at least one source of example prompts of the skill")
        names = [skill.name for skill in self.skills]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise BadInput(f"[[skill]] name: '{repeated}' is the name of two skills")
        check_running(self.batch_size, self.dtype, self.threads, self.seed)
        if self.draws not in DRAWS:
            raise BadInput(f"--draws: '{self.draws}' is not one of {', '.join(DRAWS)}")
        if self.compat is not None and self.compat not in COMPATS:
            raise BadInput(f"--compat: '{self.compat}' is not one of {', '.join(COMPATS)}")
        if self.compat is not None and not any(skill.adjusts for skill in self.skills):
            raise BadInput("--compat: is about Neuron Adjust, and no skill has method na or na+ksd")
        if self.compat is not None and self.draws != "sampled":
            raise BadInput("--compat: the authors' code always samples; leave out --draws expected")
        if self.statistics is not None and not any(skill.changes_neurons for skill in self.skills):
            raise BadInput("--statistics: is about neurons, and no skill has method na, na+ksd or sp")

    @property
    def blocks(self) -> bool:
        """Whether any skill is refused, so that there has to be a refusal token."""
        return any(skill.blocks for skill in self.skills)
