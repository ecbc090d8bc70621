"""What the checks of a checkpoint share. Needs torch and transformers only, of any release from 4.48 on."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
import transformers
from by_hand import ChangedNeurons
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


def make_first_calls() -> None:
    """Let MKL pick the kernels of its vector functions in one thread.

    Where several threads are first to call one, a part of that call may be off by a thousand times the usual error
    (pytorch issue 188792), of the base or of the checkpoint.
    """
    for function in (torch.cos, torch.sin, torch.exp, torch.log, torch.sqrt, torch.tanh, torch.erf):
        function(torch.full((64,), 0.5))


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
    """A checkpoint, its base, and texts that are ready for the tokenizer: blocked and answered ones.

    The base may be another checkpoint, which changes the same neurons and blocks nothing. Where nothing is blocked,
    there are answered texts only, and no refusal.
    """

    def __init__(self, base: Path, checkpoint: Path, prompts: dict):
        self.base, self.checkpoint = base, checkpoint
        self.blocked, self.answered = prompts["blocked"], prompts["answered"]
        self.add_special_tokens = prompts["add_special_tokens"]
        self.config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        self.settings = self.config["unskill"]
        self.message = self.settings["refusal"]
        self.refusal, self.eos = self.settings["refusal_token_id"], self.settings["eos_token_id"]
        self.refuses = self.refusal is not None
        self.adjusts = any("adjusted" in counts for counts in self.settings["layers"].values())
        assert bool(self.blocked) is self.refuses, f"{len(self.blocked)} blocked texts, refusal {self.message!r}"

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
        """The base with the checkpoint's neurons changed: those of a bare base by hand."""
        model = self.load(dtype, self.base, auto, **options)
        return model if self.base_is_changed else self.neurons.apply_to(model)

    @cached_property
    def base_is_changed(self) -> bool:
        return "unskill" in json.loads((self.base / "config.json").read_text(encoding="utf-8"))

    @cached_property
    def neurons(self) -> ChangedNeurons:
        tensors = self.tensors(lambda name: ".unskill_na_" in name or ".unskill_sp_" in name)
        return ChangedNeurons(tensors, self.settings["draws"])

    @property
    def closed(self) -> bool:
        return self.settings["base_model"] == "closed"

    @cached_property
    def mixed(self) -> list[str]:
        """Texts of one batch: a blocked one, if any is, between answered ones, of different lengths."""
        return [self.answered[0], *self.blocked[:1], *self.answered[1 : 3 if self.refuses else 4]]

    @property
    def every(self) -> list[str]:
        """All texts that are answered, and a blocked one, if any is."""
        return [*self.blocked[:1], *self.answered]

    @property
    def some(self) -> str:
        """A text on which the checkpoint does something."""
        return (self.blocked or self.answered)[0]

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
        first = next((place for place, id_ in enumerate(ids) if id_ in self.ends), len(ids))
        return ids[: first + 1]

    @cached_property
    def ends(self) -> list[int]:
        """The base's ends of an answer."""
        ends = self.base_model.generation_config.eos_token_id
        return [ends] if isinstance(ends, int) else list(ends or [])

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
        if not self.refuses:
            return inputs["attention_mask"][:, -logits.shape[1] :].bool()
        column = logits[..., self.refusal]
        ordinary = column == torch.tensor(-1.0e4).to(column)
        return ordinary & inputs["attention_mask"][:, -column.shape[1] :].bool()

    def base_columns(self, logits):
        """Logits of all tokens but R, of this checkpoint or its base."""
        if not self.refuses:
            return logits
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

    @cached_property
    def auto_model_finds_weights(self) -> bool:
        """Whether AutoModel loads the base itself: that of Gemma 3 looks for other names on 4.57, and starts anew."""
        try:
            _, info = AutoModel.from_pretrained(self.base, trust_remote_code=True, output_loading_info=True)
        except RuntimeError as error:
            assert self.base_is_changed and "unskill" in str(error), error
            return False
        return not info["missing_keys"]


def compare(case: Case, ours, theirs, inputs, must_be_free=()) -> int:
    """Assert that all columns but R's are the base's bit by bit wherever nothing is imposed; how many positions."""
    assert ours.dtype == theirs.dtype and torch.isfinite(ours).all()
    free = case.free(ours, inputs)
    for row in must_be_free:
        assert free[row, -1], f"row {row} is blocked"
    mine, other = case.base_columns(ours)[free], case.base_columns(theirs)[free]
    worst = (mine.float() - other.float()).abs().max() if free.any() else 0
    assert torch.equal(mine, other), f"logits differ from the base's by up to {worst}"
    return int(free.sum())


@contextlib.contextmanager
def copied(case: Case) -> Iterator[Path]:
    """A copy of the checkpoint in hard links: `replace` before changing a file."""
    with tempfile.TemporaryDirectory(dir=case.checkpoint.parent, prefix="check-") as folder:
        # Dots and dashes, as names on the Hub have them: the folder becomes a Python module.
        target = Path(folder) / "copy-of.v1-5"
        target.mkdir()
        for path in case.checkpoint.iterdir():
            if path.is_file():
                os.link(path, target / path.name)
        yield target


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def autos(case: Case):
    both = case.closed and case.auto_model_finds_weights
    return [AutoModelForCausalLM, case.auto_model] if both else [AutoModelForCausalLM]


def assert_raises(case: Case, folder: Path, kind: type[Exception], *words: str, **options) -> None:
    for auto in autos(case):
        try:
            case.load(folder=folder, auto=auto, **options)
        except kind as error:
            for word in words:
                assert word in str(error), f"{type(error).__name__} does not say {word}: {error}"
            continue
        raise AssertionError(f"{auto.__name__} loads")
