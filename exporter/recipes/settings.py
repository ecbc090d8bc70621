"""Settings of an export, checked before anything slow begins."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from exporter.common.errors import BadInput
from exporter.recipes.declared import check, setting
from exporter.recipes.effort import EFFORTS

DTYPES = ("auto", "float32", "bfloat16", "float16")
METHODS = ("ksd", "na", "na+ksd", "sp")
# Names only, so that --help needs no torch; the functions are in `exporter.methods.neurons.scores`.
HYPERCUBE, DISCRIMINANT = "hypercube", "discriminant"
SCORES = ("attribution", "signed-mean", "effect-size", "bhattacharyya")
DRAWS = ("sampled", "expected")
COMPATS = ("official",)
DEFAULT_REFUSAL = "Your query is not valid"
DEFAULT_SKILL = "skill"
NAME_WORDS, NAME_LENGTH = 6, 40
"""Most words and characters of a name that is made from a description."""
AUTO = {"auto": None}
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
MOST_THREADS = 1024
"""Of more, OpenMP may end the process."""
# Settings that several commands have.
SEED = {"default": 0, "minimum": 0, "maximum": 2**63 - 1, "help": "Seed of all random draws."}
SHARE = {"minimum": 0, "maximum": 1}
DTYPE = {"default": "auto", "choices": DTYPES, "help": "Dtype of the model."}
DEVICE = {"default": "cpu", "help": "Torch device on which the model runs."}
BATCH_SIZE = {"default": None, "words": AUTO, "minimum": 1, "help": "Most prompts in a batch; auto: as many as fit."}
QUIET = {"default": False, "in_recipe": False, "help": "No progress bars or messages."}
OVERWRITE = {
    "default": False,
    "in_recipe": False,
    "help": "Replace existing output, in one step, once the new one is complete.",
}
ARGUMENTS = {
    "default": None,
    "metavar": "JSON",
    "help": "Arguments of the chat template, such as '{\"enable_thinking\": false}'. Default: the template's own.",
}
RECORDED_TEMPLATE = {
    "default": None,
    "metavar": "auto|chat|TEXT",
    "help": "How prompts are formatted; {prompt} in TEXT is replaced. Default: as in the export.",
}


def name_of(description: str) -> str:
    """A short name of one line for a skill: the first words of its description."""
    words = "".join(letter if letter.isprintable() else " " for letter in description).split()
    short = words[0][:NAME_LENGTH]
    for word in words[1:NAME_WORDS]:
        if len(short) + 1 + len(word) > NAME_LENGTH:
            break
        short += f" {word}"
    return short.rstrip(".,;:!?") or short


@dataclass(frozen=True)
class SkillSettings:
    """One skill to forget; fields are named as the flags and the keys of a recipe's [[skill]] tables.

    None lets the export choose `layer`, `beta` (per cent of all neurons) and `score`, and calibrate `alpha` (standard
    deviations). The paper takes the last layer, "last". A description or a packaged skill alone gives the name, where
    there is none. `region` is never "auto": what that means stands in its place.
    """

    forget: tuple[str, ...] = setting((), metavar="SOURCE", help="Example prompts of the skill. Repeatable.")
    retain: tuple[str, ...] = setting((), metavar="SOURCE", help="Prompts that must still be answered. Repeatable.")
    packaged: tuple[str, ...] = setting(
        (), flag="--skill", metavar="NAME", help="A packaged skill, see unskill skills. Repeatable; adds to --forget."
    )
    describe: str | None = setting(
        None, metavar="TEXT", help="The skill in words, instead of or beside prompts: a model writes them."
    )
    but_not: str | None = setting(
        None, flag="--not", metavar="TEXT", help="What is near the skill of --describe and must still be answered."
    )
    save_prompts: Path | None = setting(
        None, metavar="FILE", help="Where to keep the prompts written for --describe: a .jsonl file, not in OUT."
    )
    read_prompts: str | None = setting(
        None,
        metavar="FILE",
        help="A file of --save-prompts, whose prompts are taken for --describe instead of new ones.",
    )
    name: str = setting(
        DEFAULT_SKILL, metavar="TEXT", help="Name of the skill in all output; default: the packaged skill's, if one."
    )
    method: str = setting(
        "ksd",
        choices=METHODS,
        help="ksd: refuse its prompts. na: move neurons away from it. sp: prune neurons, the paper's baseline.",
    )
    layer: int | str | None = setting(
        None, words=AUTO | {"last": "last"}, minimum=0, help="Layer of the regions.", used_by="blocks"
    )
    alpha: float | None = setting(
        None, words=AUTO, above=0, help="Hypercube size in standard deviations.", used_by="blocks"
    )
    region: str = setting(
        "auto",
        choices=("auto", HYPERCUBE, DISCRIMINANT),
        help="discriminant: half-spaces, fitted against the other prompts too and for every kind of turn. hypercube: "
        "the paper's. auto: discriminant, unless --alpha sets a hypercube's size or no prompts are to be answered.",
        used_by="blocks",
    )
    target_block_rate: float = setting(
        0.95,
        above=0,
        below=1,
        help="Share of unseen forget prompts to block: it sets a hypercube's alpha, and half-spaces that block less "
        "are warned of.",
        used_by="blocks",
    )
    max_false_block: float = setting(
        0.01, **SHARE, help="Largest share of harmless prompts whose answer may contain a refusal.", used_by="blocks"
    )
    max_near_miss: float = setting(
        0.05,
        **SHARE,
        help="Largest share of near misses of a packaged or described skill that may be refused at each place in a "
        "conversation.",
        used_by="discriminates",
    )
    max_after_refusal: float = setting(
        0.08,
        **SHARE,
        help="Largest share of the packaged harmless messages after a refusal that may be refused again. Some of "
        "them sound like insisting, so of others fewer are.",
        used_by="discriminates",
    )
    beta: float | None = setting(
        None, words=AUTO, above=0, maximum=100, help="Per cent of all neurons to change.", used_by="changes_neurons"
    )
    score: str | None = setting(
        None, words=AUTO, choices=SCORES, help="Score that neurons are chosen by.", used_by="changes_neurons"
    )
    max_retain_loss: float = setting(
        0.01, above=0, help="Largest rise in token loss on held-out retain texts, in nats.", used_by="changes_neurons"
    )
    everyday: bool = setting(True, help="Use the packaged everyday prompts on the retain side.")
    everyday_without: tuple[str, ...] = setting(
        (), commas=True, metavar="KIND[,KIND]", help="Kinds of everyday prompts that belong to the skill."
    )

    def __post_init__(self) -> None:
        """Raises BadInput for invalid values and combinations."""
        check(self)
        self._check_description()
        if self.name == DEFAULT_SKILL and self.describe is not None:
            object.__setattr__(self, "name", name_of(self.describe))
        if self.name == DEFAULT_SKILL and len(self.packaged) == 1 and not self.forget:
            object.__setattr__(self, "name", self.packaged[0])
        answered = self.everyday or bool(self.retain) or bool(self.packaged) or self.describe is not None
        if self.region == "auto":
            object.__setattr__(self, "region", DISCRIMINANT if answered and self.alpha is None else HYPERCUBE)
        if not self.name.strip() or not self.name.isprintable():
            raise BadInput("--name: give each skill a name of one line")
        if not self.forget and not self.packaged and self.describe is None:
            raise BadInput(
                "--forget or --skill: name a source of example prompts of the skill, or a packaged skill; or say in "
                "words what it is, with --describe"
            )
        if self.score is not None and self.prunes:
            raise BadInput("--score: Selective Pruning has its own score; leave this out with --method sp")
        if self.changes_neurons and not self.retain:
            raise BadInput(f"--retain: method {self.method} needs retain texts to choose neurons by; name a source")
        if not self.everyday and self.everyday_without:
            raise BadInput(
                "--everyday-without: --no-everyday already leaves out all everyday prompts; give one of the two"
            )
        if self.blocks and not answered and self.layer is None:
            raise BadInput("--no-everyday: without --retain no layer can be chosen; give --layer or --retain")
        if self.discriminates and not answered:
            raise BadInput("--region discriminant: needs prompts to be answered; name --retain or drop --no-everyday")

    def _check_description(self) -> None:
        for flag, text in (("--describe", self.describe), ("--not", self.but_not)):
            if text is not None and not text.strip():
                raise BadInput(f"{flag}: the text is empty; say in some words what is meant")
        given = {"--not": self.but_not, "--save-prompts": self.save_prompts, "--read-prompts": self.read_prompts}
        if self.describe is None and (unused := [flag for flag, value in given.items() if value is not None]):
            raise BadInput(f"{unused[0]}: belongs to --describe TEXT, which is missing")
        if self.save_prompts is not None and self.read_prompts is not None:
            raise BadInput("--save-prompts: with --read-prompts none are written; leave out one of the two")
        if self.save_prompts is not None and self.save_prompts.suffix != ".jsonl":
            raise BadInput(f"--save-prompts: {self.save_prompts.name} must end with .jsonl, as which it is read back")

    @property
    def to_write(self) -> bool:
        """Whether a model is to write prompts of this skill."""
        return self.describe is not None and self.read_prompts is None

    @property
    def blocks(self) -> bool:
        """Whether Key Space Detection refuses prompts of this skill."""
        return self.method in ("ksd", "na+ksd")

    @property
    def discriminates(self) -> bool:
        """Whether its regions are bounded along discriminants."""
        return self.blocks and self.region == DISCRIMINANT

    @property
    def adjusts(self) -> bool:
        return self.method in ("na", "na+ksd")

    @property
    def prunes(self) -> bool:
        return self.method == "sp"

    @property
    def changes_neurons(self) -> bool:
        """Whether neurons are adjusted or pruned, which needs whole texts and not prompts alone."""
        return self.adjusts or self.prunes

    @property
    def given(self) -> bool:
        """Whether the user set both layer and alpha, so that fewer prompts are enough."""
        return self.layer is not None and self.alpha is not None

    def layer_number(self, layers: int) -> int | None:
        """Number of the requested layer in a model of `layers`, None to choose. Raises BadInput if out of range."""
        if self.layer is None:
            return None
        number = layers - 1 if self.layer == "last" else int(self.layer)
        if not 0 <= number < layers:
            raise BadInput(f"--layer: {self.layer} is out of range, the model has layers 0 to {layers - 1}")
        return number


@dataclass(frozen=True)
class ExportSettings:
    """Settings of `unskill export`: the skills, and what applies to all of them.

    batch_size: None for as many rows as fit in memory; threads: None for torch's default.
    """

    model: str
    out: Path
    skills: tuple[SkillSettings, ...]
    revision: str | None = setting(None, metavar="COMMIT", help="Branch, tag or commit of a MODEL on the Hub.")
    generator: str | None = setting(
        None, metavar="MODEL", help="The model that writes prompts for --describe: folder or Hub id. Default: MODEL."
    )
    base_model: str | None = setting(
        None,
        in_recipe=False,
        metavar="USER/NAME",
        help="MODEL's id on the Hub, for the model card, where MODEL is a folder.",
    )
    refusal: str = setting(DEFAULT_REFUSAL, help="The answer to prompts of the skill.", used_by="blocks")
    draws: str = setting(
        "sampled",
        choices=DRAWS,
        help="expected: no draws; a neuron moves if that is more likely than not.",
        used_by="adjusts",
    )
    compat: str | None = setting(
        None,
        choices=COMPATS,
        help="official: Neuron Adjust as in the authors' code, for comparison.",
        used_by="adjusts",
    )
    statistics: Path | None = setting(
        None, help="File of unskill probe for the same model and prompts.", used_by="changes_neurons"
    )
    prompt_template: str = setting(
        "auto",
        metavar="auto|chat|TEXT",
        help="How prompts are formatted; {prompt} in TEXT is replaced.",
        used_by="blocks",
    )
    formats: str = setting(
        "mixed",
        choices=("mixed", "plain"),
        help="mixed: also under system prompts and as a second turn.",
        used_by="blocks",
    )
    system_prompts: tuple[str, ...] = setting(
        (),
        flag="--system-prompt",
        help="A system prompt of yours, used beside the packaged ones. Repeatable.",
        used_by="blocks",
    )
    template_args: tuple[str, ...] = setting(
        (),
        metavar="JSON",
        help="A state of the chat template's switches to cover, such as '{\"thinking\": true}', beside those that are "
        "found in it. Repeatable.",
        used_by="blocks",
    )
    effort: str = setting(
        "normal",
        choices=tuple(EFFORTS),
        help="How many prompts and answers discriminants are fitted and judged on. What is promised follows from it: "
        "of few prompts the bound on false blocks is above --max-false-block even where none is blocked.",
        used_by="discriminates",
    )
    skip_long: bool = setting(False, help="Leave out prompts longer than the model's context.")
    seed: int = setting(**SEED)
    dtype: str = setting(**DTYPE)
    device: str = setting(**DEVICE)
    batch_size: int | None = setting(**BATCH_SIZE)
    threads: int | None = setting(
        None,
        words=AUTO,
        minimum=1,
        maximum=MOST_THREADS,
        help="CPU threads. The last bits of sums depend on them, so a checkpoint's recipe records the number.",
    )
    overwrite: bool = setting(**OVERWRITE)
    force: bool = setting(False, help="Write even if no layer separates the skill or no beta is within budget.")
    link: bool = setting(False, in_recipe=False, help="Hard-link unchanged shards instead of copying them.")
    fingerprints: bool = setting(True, in_recipe=False, help="Record the sha256 of the weight files.")
    cache: bool = setting(
        True,
        in_recipe=False,
        help="Keep what the base computes, so that an export that was stopped goes on where it was and one with other "
        "budgets computes nothing twice; see unskill cache.",
    )
    figures: bool = setting(True, in_recipe=False, help="Draw charts for the model card.")
    quiet: bool = setting(**QUIET)

    def __post_init__(self) -> None:
        """Raises BadInput for invalid values and combinations."""
        check(self)
        if self.base_model is not None and not HUB_ID.fullmatch(self.base_model):
            raise BadInput(f"--base-model: {self.base_model!r} is not the id of a model on the Hub, as USER/NAME")
        names = [skill.name for skill in self.skills]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise BadInput(f"[[skill]] name: '{repeated}' is the name of two skills")
        if self.generator is not None and not any(skill.describe is not None for skill in self.skills):
            raise BadInput("--generator: writes prompts for --describe TEXT, which no skill has")
        if self.compat is not None and not any(skill.adjusts for skill in self.skills):
            raise BadInput("--compat: applies to Neuron Adjust, and no skill has method na or na+ksd")
        if self.compat is not None and self.draws != "sampled":
            raise BadInput("--compat: the authors' code always samples; leave out --draws expected")
        if self.statistics is not None and not any(skill.changes_neurons for skill in self.skills):
            raise BadInput("--statistics: applies to neurons, and no skill has method na, na+ksd or sp")

    @property
    def blocks(self) -> bool:
        """Whether any skill is refused, which needs a refusal token."""
        return any(skill.blocks for skill in self.skills)
