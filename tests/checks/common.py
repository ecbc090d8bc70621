"""What the checks of a checkpoint share. Needs torch and transformers only, of any release from 4.48 on."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
import transformers
from packaging import version
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

RELEASE = version.parse(transformers.__version__)
DTYPE_ARGUMENT = "dtype" if version.parse("4.56") <= RELEASE else "torch_dtype"
NEW_TOKENS = 12

CHECKS: dict[str, Callable[[Case], str | None]] = {}


class NotApplicable(Exception):
    """This check says nothing about this checkpoint or this release; the message says why."""


def check(function: Callable[[Case], str | None]) -> Callable[[Case], str | None]:
    """Register a check. It returns None or a remark, and raises where the checkpoint is not as it should be."""
    CHECKS[function.__name__] = function
    return function


def needs_newest() -> None:
    if version.parse("5.23") > RELEASE:
        raise NotApplicable(f"asked of transformers 5.23 only, this is {RELEASE}")


def run(names: Sequence[str], case: Case) -> dict[str, str]:
    """Run the checks; by name "ok", "ok: remark", "failed: why" or "not applicable: why"."""
    results = {}
    for name in names:
        try:
            remark = CHECKS[name](case)
            results[name] = f"ok: {remark}" if remark else "ok"
        except NotApplicable as reason:
            results[name] = f"not applicable: {reason}"
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            results[name] = f"failed: {type(error).__name__}: {error}"
        print(f"{name}: {results[name]}", file=sys.stderr, flush=True)
    return results


class Case:
    """A checkpoint, its base, and texts that are ready for the tokenizer: blocked and answered ones."""

    def __init__(self, base: Path, checkpoint: Path, prompts: dict):
        self.base, self.checkpoint = base, checkpoint
        self.blocked, self.answered = prompts["blocked"], prompts["answered"]
        self.add_special_tokens = prompts["add_special_tokens"]
        self.config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        self.settings = self.config["unskill"]
        self.message = self.settings["refusal"]
        self.refusal, self.eos = self.settings["refusal_token_id"], self.settings["eos_token_id"]

    @cached_property
    def tokenizer(self):
        tokenizer = AutoTokenizer.from_pretrained(self.checkpoint, trust_remote_code=True)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def model(self):
        return self.load()

    @cached_property
    def base_model(self):
        return self.load_base()

    def load(self, dtype="float32", folder=None, auto=AutoModelForCausalLM, **options):
        options[DTYPE_ARGUMENT] = getattr(torch, dtype)
        return auto.from_pretrained(folder or self.checkpoint, trust_remote_code=True, **options).eval()

    def load_base(self, dtype="float32", auto=AutoModelForCausalLM, **options):
        options[DTYPE_ARGUMENT] = getattr(torch, dtype)
        return auto.from_pretrained(self.base, **options).eval()

    @property
    def closed(self) -> bool:
        return self.settings["base_model"] == "closed"

    @cached_property
    def mixed(self) -> list[str]:
        """Texts of one batch: a blocked one between answered ones, of different lengths."""
        return [self.answered[0], self.blocked[0], *self.answered[1:3]]

    def encode(self, texts):
        texts = [texts] if isinstance(texts, str) else texts
        return self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=self.add_special_tokens)

    def generate(self, model, texts, **options):
        """Ids that follow each text, up to the first EOS; greedy unless options say otherwise."""
        inputs = self.encode(texts)
        options = {
            "max_new_tokens": NEW_TOKENS,
            "do_sample": False,
            "pad_token_id": self.tokenizer.pad_token_id,
            **options,
        }
        output = model.generate(**inputs, **options)
        return [self.until_end(row) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]

    def until_end(self, ids):
        """Up to the first EOS, that included."""
        ends = self.base_model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else ends or []
        first = next((place for place, id_ in enumerate(ids) if id_ in ends), len(ids))
        return ids[: first + 1]

    def text(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def assert_refused(self, ids):
        """Whether ids are the refusal and nothing else, and decode to the message."""
        assert ids == [self.refusal, self.eos], f"generated {ids}: {self.text(ids)!r}"
        assert self.text(ids) == self.message, f"decodes to {self.text(ids)!r}"

    def forward(self, model, inputs, **options):
        with torch.no_grad():
            return model(**inputs, **options)

    def free(self, logits, inputs):
        """Positions (batch, positions) with a real token after which nothing was imposed."""
        column = logits[..., self.refusal]
        ordinary = column == torch.tensor(-1.0e4).to(column)
        return ordinary & inputs["attention_mask"][:, -column.shape[1] :].bool()

    def base_columns(self, logits):
        """Logits of all tokens but R, of this checkpoint or its base."""
        return torch.cat([logits[..., : self.refusal], logits[..., self.refusal + 1 :]], -1)

    def tensors(self, pick):
        """Tensors of the checkpoint's files whose names `pick` accepts."""
        found = {}
        for path in sorted(self.checkpoint.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                found |= {name: file.get_tensor(name) for name in file.keys() if pick(name)}  # noqa: SIM118
        return found

    @property
    def auto_model(self):
        return AutoModel
