"""unskill from Python: what its commands do, with objects instead of flags and files. Prints nothing unless asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from exporter.checkpoint.push.push import PushSettings, push
from exporter.checkpoint.summary import StoredRate, Summary
from exporter.checkpoint.verdict import verdict
from exporter.common.errors import BadInput
from exporter.common.text import Notify, unheard
from exporter.evaluation import run as evaluation
from exporter.evaluation.settings import KINDS, EvaluateSettings
from exporter.evaluation.why import Verdict, detectors_of, watched
from exporter.models.library import silent_library
from exporter.models.loading import LoadedModel, load_checkpoint
from exporter.pipeline import run as pipeline
from exporter.prompts.sources import Source
from exporter.recipes.declared import declared
from exporter.recipes.recipe import merged_settings
from exporter.recipes.settings import ExportSettings, SkillSettings
from exporter.recipes.used import check_used
from exporter.verification import run as verification
from exporter.verification.whole import check_whole

if TYPE_CHECKING:
    from datasets import Dataset

One: TypeAlias = "str | PathLike[str] | Source | Dataset"
Prompts: TypeAlias = "One | Sequence[One]"
"""A SOURCE as on the command line, a path, a `Source` or a dataset; or several; or a list of texts, the prompts
themselves. So a string alone is a SOURCE, and strings in a list are prompts."""


@dataclass(frozen=True)
class Result:
    """What an export wrote and found. out: the checkpoint's folder; summary: everything measured."""

    out: Path
    summary: Summary

    @property
    def verdict(self) -> str:
        """What it refuses, what it refuses in error, what it misses: a line for each, of each skill."""
        return "\n".join(line for skill in self.summary.skills for line in verdict(skill))

    @property
    def table(self) -> list[dict[str, Any]]:
        """Rows for `pandas.DataFrame`: the share refused of each group of prompts that nothing was fitted on.

        skill; side: "forget", or "answer" for prompts that must be answered; source; kind: of turn, or "all"; form:
        None where all forms of a source are counted; hits and total; low and high: the 95 % interval of the share.
        """
        return [
            {"skill": skill.name, "side": side, "source": source, "kind": kind, "form": form} | counted
            for skill in self.summary.skills
            for side, source, kind, form, counted in rows(skill.key_space)
        ]

    def push(self, repo: str, *, public: bool = False, notify: Notify = unheard, **settings: Any) -> dict[str, Any]:
        """Push the checkpoint to the Hub repo USER/NAME, as `unskill push` does.

        settings: revision, create_pr, message, dry_run. Returns what was pushed. Raises BadInput and RunFailed.
        """
        given = PushSettings(self.out, repo, public=public, quiet=True, **settings)
        return push(given, check_whole, notify)


def rows(found: Any) -> Iterator[tuple[str, str, str, str | None, dict[str, Any]]]:
    if found is None:
        return
    for side, rates in (("forget", found.blocked), ("answer", found.false_blocks)):
        for source, kinds in rates.items():
            for kind, rate in kinds.items():
                yield side, source, kind, None, counts(rate)
    if found.discriminant is not None:
        for form, kinds in found.discriminant.forms.items():
            for kind, rate in kinds.items():
                yield "forget", "", kind, form, counts(rate)


def counts(rate: StoredRate) -> dict[str, Any]:
    return {"hits": rate.hits, "total": rate.total, "low": rate.low, "high": rate.high}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of unskill, loaded: `model` and `tokenizer` as transformers has them."""

    loaded: LoadedModel

    @property
    def model(self) -> PreTrainedModel:
        return self.loaded.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.loaded.tokenizer

    def explain(self, prompt: str, system: str | None = None) -> list[Verdict]:
        """Why a prompt is refused or not: of each skill the prompt's score, and the limit up to which it is refused.

        `blocked_after` is 0 where it is refused, else None. The score is that of the prompt's last token, in the
        format of the export.
        """
        formatter = self.loaded.formatter(self.loaded.template, max_length=None)
        for text, name in ((prompt, "prompt"), *([] if system is None else [(system, "system")])):
            if not isinstance(text, str) or not text.strip() or has_surrogates(text):
                raise BadInput(f"{name}: {text!r} is not a text")
        inputs = self.loaded.pad([formatter.render(prompt, system=system)], "left")
        with torch.inference_mode(), watched(self.loaded, detectors_of(self.loaded)) as seen:
            self.loaded.model(**inputs)
        return seen.verdicts()


def has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


@silent_library()
def load(out: str | PathLike[str], *, dtype: str = "auto", device: str = "cpu") -> Checkpoint:
    """Load a checkpoint of unskill, a folder or Hub id, with the checks of its own code.

    Raises BadInput where it is none, or not as it was written.
    """
    return Checkpoint(load_checkpoint(str(path_of(out, "checkpoint")), dtype, device))


@silent_library()
def export(
    model: str | PathLike[str] | PreTrainedModel,
    out: str | PathLike[str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    forget: Prompts = (),
    retain: Prompts = (),
    skills: Sequence[str] = (),
    notify: Notify = unheard,
    **settings: Any,
) -> Result:
    """Write the checkpoint `out` of a model that no longer shows a skill, as `unskill export` does.

    Args:
        model: A folder, a Hub id, or a loaded model.
        out: The folder to write.
        tokenizer: Of a loaded model.
        forget: Prompts of the skill, see `Prompts`.
        retain: Prompts that must be answered.
        skills: Names of packaged skills, as "maths".
        notify: Gets a line for each thing that is worth knowing; `print` shows them.
        settings: Any key of a recipe's tables: seed, dtype, max_false_block, describe, system_prompts, ...

    Prompts that are given as texts or datasets, and a loaded model, are written to files for the time of the export;
    the recipe in `out` names these by their sha256. Raises BadInput, RunFailed, and Rejected where the skill is not
    within the limits asked for: nothing is written then.
    """
    if isinstance(skills, str) or not isinstance(skills, Sequence):
        raise BadInput(f"skills: {skills!r} is not a list of names of packaged skills")
    read = {name: setting_of(name, value) for name, value in settings.items()}
    with TemporaryDirectory(prefix="unskill-") as folder:
        given: dict[str, Any] = {"out": path_of(out, "out"), "quiet": True}
        for name, prompts in (("forget", forget), ("retain", retain)):
            if specs := sources(prompts, name, Path(folder)):
                given[name] = specs
        if skills:
            given["packaged"] = tuple(skills)
        given |= {"model": saved(model, tokenizer, Path(folder)), **read}
        checked = merged_settings({}, given)
        check_used(checked, given)
        return Result(checked.out, pipeline.export(checked, notify))


def setting_of(name: str, value: Any) -> Any:
    """A setting of an export, of its own type. Raises BadInput for an unknown one and for another type."""
    known = declared(ExportSettings) | declared(SkillSettings)
    if name not in known:
        raise BadInput(f"{name}: unskill export has no such setting")
    if value is None and known[name].optional:
        return None
    try:
        return known[name].from_toml(str(value) if isinstance(value, PathLike) else value)
    except ValueError as error:
        raise BadInput(f"{name}: {value!r} is not {known[name].wanted}") from error


def path_of(value: Any, name: str) -> Path:
    if not isinstance(value, str | PathLike) or not str(value):
        raise BadInput(f"{name}: {value!r} is not a path")
    return Path(value)


def verify(checkpoint: str | PathLike[str], *, notify: Notify = unheard, **settings: Any) -> dict[str, Any]:
    """Check a checkpoint as `unskill verify` does. settings: its flags (model, onnx, attack, trust_code, device).

    Returns {"ok": whether no check failed, "checks": [{"name", "ok", "detail"}, ...]}. Raises BadInput.
    """
    return verification.verify(verification.VerifySettings(str(checkpoint), **settings), notify)


def evaluate(
    checkpoint: str | PathLike[str], out: str | PathLike[str], *, notify: Notify = unheard, **settings: Any
) -> dict[str, Any]:
    """Measure a checkpoint, and a base beside it, as `unskill evaluate` does; `out` is the folder of the results.

    settings: its flags; forget, retain, text, choice, gsm8k, qa and code name SOURCEs. Raises BadInput and RunFailed.
    """
    with TemporaryDirectory(prefix="unskill-") as folder:
        kinds = {kind: settings.pop(kind) for kind in KINDS if kind in settings}
        found = {kind: sources(prompts, kind, Path(folder)) for kind, prompts in kinds.items()}
        given = EvaluateSettings(str(checkpoint), Path(out), found, quiet=True, **settings)
        return evaluation.evaluate(given, notify)


def saved(
    model: str | PathLike[str] | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path
) -> str:
    """The model as a folder or Hub id."""
    if isinstance(model, str | PathLike) and tokenizer is None:
        return str(path_of(model, "model"))
    if not isinstance(model, PreTrainedModel) or not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise BadInput("model, tokenizer: give a folder or Hub id alone, or a loaded model and its loaded tokenizer")
    path = folder / (Path(model.name_or_path or "").name or "model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def sources(prompts: Prompts, name: str, folder: Path) -> tuple[str, ...]:
    """Prompts as SOURCEs of the command line; texts and datasets are written into the folder."""
    if not isinstance(prompts, Sequence) or isinstance(prompts, str):
        return (source_of(prompts, name, folder),)
    texts = [each for each in prompts if isinstance(each, str)]
    if not texts:
        return tuple(source_of(each, f"{name}-{number}", folder) for number, each in enumerate(prompts, 1))
    if len(texts) < len(prompts):
        raise BadInput(f"{name}: a list of both texts and sources; strings in a list are prompts")
    return (written(name, [{"prompt": text} for text in texts], folder),)


def source_of(one: One, name: str, folder: Path) -> str:
    if isinstance(one, str):
        return one
    if isinstance(one, Source):
        return one.spec
    if isinstance(one, PathLike):
        return Source(str(one)).spec
    if hasattr(one, "to_list") and hasattr(one, "column_names"):  # a dataset, without importing datasets
        return written(name, one.to_list(), folder)
    raise BadInput(f"{name}: {type(one).__name__} is not a path, a SOURCE, a dataset or a list of prompts")


def written(name: str, lines: Sequence[Mapping[str, Any]], folder: Path) -> str:
    path = folder / f"{name}.jsonl"
    try:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        path.write_text(text, encoding="utf-8")
    except (TypeError, UnicodeEncodeError) as error:
        raise BadInput(f"{name}: cannot be written as JSON in UTF-8 ({error})") from error
    return Source(str(path)).spec
