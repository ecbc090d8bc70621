"""The YAML head of a model card, which the Hub reads: what it was made of, its licence, and what was measured.

Results stand in `model-index`. The Hub has a newer place, `.eval_results/*.yaml`, but that is for scores on its
registered benchmarks, by which its leaderboards are made: a share of refused prompts is none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml  # type: ignore[import-untyped]
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from exporter.checkpoint.card.text import plain
from exporter.checkpoint.summary import SkillSummary, SourceSummary, Summary
from exporter.models.files import Base
from exporter.prompts.packaged import EVERYDAY
from exporter.recipes.settings import HUB_ID

TAGS = ["unlearning", "skill-unlearning", "custom_code", "unskill", "arxiv:2503.21730"]
METHOD_TAGS = {
    "ksd": ["key-space-detection"],
    "na": ["neuron-adjust"],
    "na+ksd": ["neuron-adjust", "key-space-detection"],
    "sp": ["selective-pruning"],
}
# What a base's card says of licence and languages; the checkpoint is a derivative and inherits them.
LICENCE_KEYS = ("license", "license_name", "license_link", "language")
COMMIT_DIGITS = 40  # of a Hub dataset's fingerprint; a file's sha256 has 64
TASK = "text-generation"


def inherited(base: Base) -> tuple[dict[str, Any], str | None]:
    """What the checkpoint's card takes over from the base's, and a sentence where the base's metadata cannot be read.

    The licence of a base that has a licence file but names none is "other", as the Hub wants it.
    """
    found, problem = {}, None
    readme = base.folder / "README.md"
    if readme.is_file():
        try:
            data = ModelCard.load(readme, ignore_metadata_errors=True).data.to_dict()
            found = {name: data[name] for name in LICENCE_KEYS if is_texts(data.get(name))}
        except (yaml.YAMLError, ValueError, TypeError) as error:
            problem = (
                f"MODEL {base.name}: the metadata of its README.md cannot be read ({type(error).__name__}), so the "
                "card takes no licence from it"
            )
    link = found.get("license_link")
    if isinstance(link, str) and base.revision and ":" not in link and not (base.folder / link).is_file():
        found["license_link"] = f"https://huggingface.co/{base.name}/blob/{base.revision}/{link}"
    licences = sorted(path.name for path in base.folder.glob("LICENSE*") if path.is_file())
    if "license" not in found and licences:
        found |= {"license": "other", "license_name": f"{slug(base.name)}-license", "license_link": licences[0]}
    return found, problem


def base_model(base: Base, given: str | None) -> str | None:
    """The base's id on the Hub: as given, or the one that it was downloaded from, or that its config.json names."""
    named = base.config.get("_name_or_path")
    known = isinstance(named, str) and HUB_ID.fullmatch(named) and not os.path.exists(named)
    return given or (base.name if base.revision is not None else str(named) if known else None)


def is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def slug(name: str) -> str:
    """The last part of a name in lower case, letters, digits, dots and hyphens only."""
    return re.sub(r"[^a-z0-9.]+", "-", name.split("/")[-1].lower()).strip("-.") or "base"


def card_metadata(base: Base, given: str | None, summary: Summary) -> ModelCardData:
    """given: the base's id on the Hub, where it was given."""
    skills = summary.skills
    methods = dict.fromkeys(tag for skill in skills for tag in METHOD_TAGS[skill.method])
    datasets = dict.fromkeys(each.name for skill in skills for each in skill.sources if is_dataset(each))
    known: dict[str, Any] = inherited(base)[0]
    if (origin := base_model(base, given)) is not None:
        known |= {"base_model": origin, "base_model_relation": "finetune"}
    if results := list(eval_results(summary)):
        known |= {"model_name": plain(title(base.name, skills)), "eval_results": results}
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        tags=[*TAGS, *methods],
        datasets=list(datasets) or None,
        **known,
    )


def title(base: str, skills: Sequence[SkillSummary]) -> str:
    """The checkpoint's name: the base without its skills, which are named where they have names."""
    names = [skill.name for skill in skills]
    what = "one skill" if names == ["skill"] else ", ".join(names)
    return f"{base.split('/')[-1]} without {what}"


def is_dataset(source: SourceSummary) -> bool:
    return len(source.fingerprint) == COMMIT_DIGITS


def eval_results(summary: Summary) -> Iterable[EvalResult]:
    """Shares on the report parts, 0 to 1, and perplexities against the base's, by what they are of."""
    for skill in summary.skills:
        whose, cubes = f"{plain(skill.name)}: ", skill.key_space
        if cubes is not None:
            for rates, metric, what in (
                (cubes.blocked, "refusal_rate", "refused, held-out prompts of the skill"),
                (cubes.false_blocks_over_answers, "false_refusal_rate", "refused in error, held-out other prompts"),
            ):
                for source, formats in rates.items():
                    found = formats["all"]
                    if found.rate is not None:
                        name = f"{whose}{what} ({found.hits} of {found.total})"
                        yield result(skill, source, metric, name, found.rate)
        if skill.neurons is not None:
            for side, effect in skill.neurons.texts.items():
                name = f"{whose}perplexity of held-out {side} texts, times the base's"
                yield result(skill, side, "perplexity_ratio", name, effect.perplexity_ratio)


def result(skill: SkillSummary, source: str, metric: str, name: str, value: float) -> EvalResult:
    """source: its label, or the side of the texts: "forget" or "retain"."""
    sources = [each for each in skill.sources if source in (each.label, each.flag.removeprefix("--"))]
    where = plain(", ".join(each.label for each in sources) or source)
    # The name twice: results are told apart by type, configuration and revision.
    dataset: dict[str, Any] = {"dataset_type": "custom", "dataset_name": where, "dataset_config": where}
    if source == EVERYDAY:
        dataset = {"dataset_type": "unskill-everyday", "dataset_name": "everyday prompts of unskill"}
    elif len(sources) == 1:
        (only,) = sources
        dataset["dataset_revision"] = only.fingerprint
        if is_dataset(only):
            dataset["dataset_type"] = only.name
            dataset["dataset_config"], dataset["dataset_split"] = only.options.get("name"), only.options.get("split")
    return EvalResult(
        task_type=TASK,
        task_name="Text Generation",
        metric_type=metric,
        metric_name=name,
        metric_value=round(value, 4),
        **dataset,
    )
