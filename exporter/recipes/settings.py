"""What the user asked of an export, checked before anything long begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.common.errors import BadInput
from exporter.recipes.declared import check, declared, setting

DTYPES = ("auto", "float32", "bfloat16", "float16")
METHODS = ("ksd", "na", "na+ksd", "sp")
# By their names, so that --help answers without torch; `neuron_selection` has the functions.
SCORES = ("attribution", "signed-mean", "effect-size", "bhattacharyya")
DRAWS = ("sampled", "expected")
COMPATS = ("official",)
DEFAULT_REFUSAL = "Your query is not valid"
DEFAULT_SKILL = "skill"
AUTO = {"auto": None}
# What other commands have too.
SEED = {"default": 0, "minimum": 0, "maximum": 2**63 - 1, "help": "Of everything that is drawn."}
DTYPE = {"default": "auto", "choices": DTYPES, "help": "Of the model."}
DEVICE = {"default": "cpu", "help": "Where the model runs, as torch names it."}


@dataclass(frozen=True)
class SkillSettings:
    """One skill to forget; the names are those of the flags and of a recipe's [[skill]] tables.

    layer: None chooses one, "last" is the paper's, else a number; alpha: None calibrates it, else deviations;
    beta: None chooses it, else per cent of all neurons; score: None chooses one.
    """

    forget: tuple[str, ...] = setting((), metavar="SOURCE", help="Example prompts of the skill. Repeatable.")
    retain: tuple[str, ...] = setting((), metavar="SOURCE", help="Prompts that must still be answered. Repeatable.")
    name: str = setting(DEFAULT_SKILL)
    method: str = setting(
        "ksd",
        choices=METHODS,
        help="ksd: refuse its prompts. na: move neurons away from it. sp: zero neurons, the paper's baseline.",
    )
    layer: int | str | None = setting(None, words=AUTO | {"last": "last"}, minimum=0, help="Layer of the hypercubes.")
    alpha: float | None = setting(None, words=AUTO, above=0, help="Size of the hypercube in deviations.")
    target_block_rate: float = setting(
        0.95, above=0, below=1, help="Share of further forget prompts that alpha is to hold."
    )
    max_false_block: float = setting(
        0.01, minimum=0, maximum=1, help="Greatest share of harmless prompts with a refusal anywhere in their answer."
    )
    beta: float | None = setting(None, words=AUTO, above=0, maximum=100, help="Per cent of all neurons to change.")
    score: str | None = setting(None, words=AUTO, choices=SCORES, help="By what neurons are chosen.")
    max_retain_loss: float = setting(
        0.01, above=0, help="Greatest rise of the token loss of held-out retain texts, in nats."
    )
    everyday: bool = setting(True, help="Use the packaged everyday prompts on the retain side.")
    everyday_without: tuple[str, ...] = setting(
        (), commas=True, metavar="KIND[,KIND]", help="Kinds of everyday prompts that belong to the skill."
    )

    def __post_init__(self) -> None:
        """Raises BadInput for values that no export can have."""
        check(self)
        if not self.name.strip() or not self.name.isprintable():
            raise BadInput("[[skill]] name: give each skill a name of one line")
        if not self.forget:
            raise BadInput("--forget: name at least one source of example prompts of the skill")
        if self.score is not None and self.prunes:
            raise BadInput("--score: Selective Pruning has one of its own; leave it out with --method sp")
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


@dataclass(frozen=True)
class ExportSettings:
    """Settings of `unskill export`: the skills, and what holds for all of them.

    revision: branch, tag or commit of a Hub model; batch_size: None for as many rows as there is room for; threads:
    None for as many as torch takes.
    """

    model: str
    out: Path
    skills: tuple[SkillSettings, ...]
    revision: str | None = setting(None, metavar="COMMIT", help="Branch, tag or commit of a MODEL of the Hub.")
    refusal: str = setting(DEFAULT_REFUSAL, help="The answer to the skill.")
    draws: str = setting(
        "sampled", choices=DRAWS, help="expected: a neuron is moved whenever that is more likely than not."
    )
    compat: str | None = setting(
        None, choices=COMPATS, help="official: Neuron Adjust as the authors' code has it, to compare with."
    )
    statistics: Path | None = setting(None, help="What unskill probe found for the same model and prompts.")
    prompt_template: str = setting(
        "auto", metavar="auto|chat|TEXT", help="How prompts are formatted; {prompt} in TEXT is replaced."
    )
    formats: str = setting(
        "mixed", choices=("mixed", "plain"), help="mixed: also under system prompts and as a second turn."
    )
    system_prompts: tuple[str, ...] = setting(
        (), flag="--system-prompt", help="A system prompt of yours, added to the mixture. Repeatable."
    )
    skip_long: bool = setting(False, help="Leave out prompts longer than the model's context.")
    seed: int = setting(**SEED)
    dtype: str = setting(**DTYPE)
    device: str = setting(**DEVICE)
    batch_size: int | None = setting(
        None, words=AUTO, minimum=1, help="Prompts at a time; auto: as many as there is room for."
    )
    threads: int | None = setting(
        None,
        words=AUTO,
        minimum=1,
        help="Of the CPU. Last bits of sums depend on it, so a checkpoint's recipe has the number.",
    )
    overwrite: bool = setting(
        False, in_recipe=False, help="Replace what is there, in one step, once the new one is whole."
    )
    force: bool = setting(False, help="Write even where no layer separates the skill, or no beta is within budget.")
    link: bool = setting(False, in_recipe=False, help="Hard-link shards that do not change, instead of copying them.")
    fingerprints: bool = setting(True, in_recipe=False, help="Record the sha256 of the weight files.")
    figures: bool = setting(True, in_recipe=False, help="Draw charts for the model card.")
    quiet: bool = setting(False, in_recipe=False, help="No progress bars and messages.")

    def __post_init__(self) -> None:
        """Raises BadInput for values that no export can have."""
        check(self)
        if not self.skills:
            raise BadInput("--forget: name at least one source of example prompts of the skill")
        names = [skill.name for skill in self.skills]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise BadInput(f"[[skill]] name: '{repeated}' is the name of two skills")
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


def check_running(batch_size: int | None, dtype: str, seed: int = 0) -> None:
    """Raises BadInput for a batch size, dtype or seed that no command can have."""
    for name, value in (("batch_size", batch_size), ("dtype", dtype), ("seed", seed)):
        declared(ExportSettings)[name].check(value)
