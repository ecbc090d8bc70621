"""The models that are evaluated: a checkpoint, and the base model that it was made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from exporter.models.files import Base, check_checkpoint, find_base, find_files
from exporter.models.loading import load_files, plain_model
from exporter.models.tokens import blocked, context_of, pad_id_of, padded
from exporter.prompts.formats import Formatter

BASE, EDITED = "base", "edited"


@dataclass(frozen=True)
class Subject:
    """A loaded model. `role`: BASE or EDITED; `name`: Hub id or folder name.

    `settings`: config.json's unskill object, empty for a base model; `identity`: what stands for its files, by which a
    later run knows that it is the same model.
    """

    role: str
    name: str
    model: Any
    tokenizer: Any
    settings: dict[str, Any]
    identity: str

    @property
    def refusal_id(self) -> int | None:
        """R, or None where nothing is ever refused."""
        return self.settings.get("refusal_token_id")

    @property
    def pad_id(self) -> int:
        return pad_id_of(self.tokenizer, self.model, self.name)

    @property
    def device(self) -> torch.device:
        return cast("torch.device", self.model.device)

    @property
    def template(self) -> str:
        """The prompt template that the export recorded with its skills; "auto" where none did, as for a base model."""
        skills = self.settings.get("skills", ())
        return next((each["prompt_template"] for each in skills if "prompt_template" in each), "auto")

    def formatter(self, template: str | None = None, **options: Any) -> Formatter:
        """How the model is asked: by a template, already read, where one is given, else by `self.template`.

        options: of Formatter; max_length is the model's context unless given. Raises BadInput as Formatter.
        """
        given = {"max_length": context_of(self.model)} | options
        return Formatter(self.tokenizer, template=self.template if template is None else template, **given)

    def pad(self, ids: Sequence[Sequence[int]], side: str) -> dict[str, Tensor]:
        """Token ids and mask (rows, positions), padded on the left or the right."""
        return padded(ids, self.pad_id, side, self.device)

    def refused(self, logits: Tensor) -> Tensor:
        """Which rows of logits (..., vocabulary) are those of a blocked position: (...) bool, on the CPU."""
        if self.refusal_id is None:
            return torch.zeros(logits.shape[:-1], dtype=torch.bool)
        return blocked(logits[..., self.refusal_id]).cpu()


def load_edited(name: str, dtype: str, device: str) -> Subject:
    """The checkpoint, with its own modeling code. Raises BadInput where it is none, or does not load."""
    files = find_files(name, "CHECKPOINT", check_checkpoint, code=True)
    model, tokenizer = load_files(files, dtype, device, "CHECKPOINT", trust_remote_code=True)
    return Subject(EDITED, files.name, model, tokenizer, files.config["unskill"], identity_of(files))


def load_base(name: str, dtype: str, device: str) -> Subject:
    """The base model. Raises BadInput where it does not load."""
    base = find_base(name)
    model, tokenizer = load_files(base, dtype, device, "MODEL")
    return Subject(BASE, base.name, model, tokenizer, {}, identity_of(base))


def identity_of(files: Base) -> str:
    """Hex digest of config.json, which holds the sha256 of every intervention, and of the size of each weight file.

    Not of the weights themselves, of which there may be many gigabytes.
    """
    sizes = {shard: (files.folder / shard).stat().st_size for shard in files.shards}
    text = json.dumps([files.config, sizes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def plain_base(edited: Subject) -> Subject:
    """The base model of a checkpoint, as `plain_model` gives it."""
    base = plain_model(edited.model, edited.settings)
    return Subject(BASE, f"base of {edited.name}", base, edited.tokenizer, {}, edited.identity)
