"""Loading models and tokenizers from their files."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from custom_modeling.buffers import is_unskill
from exporter.common.errors import BadInput, RunFailed, first_line
from exporter.models.batches import out_of_memory
from exporter.models.families import EMBEDDING, HEAD, Family, check_modules, family_of
from exporter.models.files import PREFIX, Base, check_checkpoint, check_no_graph, find_files
from exporter.models.named_ids import end_ids, lost_pad, problems, problems_of_texts, rowless, tokens_of
from exporter.models.tokens import blocked, context_of, padded
from exporter.models.weights import mismatches
from exporter.prompts.formats import Formatter

# Functions that torch passes on to MKL and that models, losses and the interventions call.
FUNCTIONS = ("cos", "sin", "exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "tanh", "erf", "erfc")
FEW = 64  # elements: torch splits longer tensors among its threads

# What the transformers releases raise for an invalid config.json or tokenizer. ImportError: an attention
# implementation that is not installed.
UNSOUND = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    ImportError,
    StrictDataclassError,
)


@dataclass(frozen=True)
class LoadedModel:
    """A base model or checkpoint in memory."""

    files: Base
    model: Any
    tokenizer: Any

    @property
    def name(self) -> str:
        return self.files.name

    @property
    def settings(self) -> dict[str, Any]:
        """config.json's unskill object, empty for a base model."""
        return self.files.config.get("unskill", {})

    @property
    def family(self) -> Family:
        """Of a base model."""
        return family_of(self.model)

    @property
    def refusal_id(self) -> int | None:
        """R, or None if nothing is ever refused."""
        return self.settings.get("refusal_token_id")

    @property
    def pad_id(self) -> int:
        """The tokenizer's pad token; an EOS where it has none, or none with a row, as pads are masked."""
        pad: int | None = self.tokenizer.pad_token_id
        return self.eos_ids[0] if pad is None or self.lost_pad else pad

    @property
    def lost_pad(self) -> str | None:
        """The tokenizer's pad token where the model has no row for it."""
        return lost_pad(self.tokenizer, self.files.rows)

    @property
    def eos_ids(self) -> list[int]:
        """Ids that end an answer, at least one."""
        return end_ids(self.files.config, self.files.generation)

    @property
    def device(self) -> torch.device:
        return cast("torch.device", self.model.device)

    @property
    def template(self) -> str | None:
        """The prompt template that the export recorded, if any; None for a base model."""
        skills = self.settings.get("skills", ())
        return next((each["prompt_template"] for each in skills if "prompt_template" in each), None)

    def formatter(self, template: str | None = None, **options: Any) -> Formatter:
        """The formatter of prompts: with the given template text, else `self.template`, else the chat template.

        options: of Formatter; max_length defaults to the model's context. Raises BadInput as Formatter.
        """
        given = {"max_length": context_of(self.model)} | options
        chosen = self.template if template is None else template
        return Formatter(self.tokenizer, template="auto" if chosen is None else chosen, **given)

    def pad(self, ids: Sequence[Sequence[int]], side: str) -> dict[str, Tensor]:
        """Token ids and mask (rows, positions), padded on the left or the right.

        Raises BadInput for a token that the model has no row for.
        """
        last = max((id_ for row in ids for id_ in row), default=0)
        if last >= self.files.rows:
            token = rowless(self.tokenizer, self.files.rows)[last]
            raise BadInput(f"{self.files.what}: a text has token '{token}' ({last}), for which there is no row")
        return padded(ids, self.pad_id, side, self.device)

    def greedy(self, new_tokens: int) -> GenerationConfig:
        """How generate() is to answer: greedily, with at most so many tokens."""
        return GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=self.eos_ids,
            pad_token_id=self.pad_id,
        )

    def sampled(self, new_tokens: int) -> GenerationConfig:
        """How generate() is to write varied texts: the same, but drawn from the likeliest tokens."""
        config = self.greedy(new_tokens)
        config.update(do_sample=True, temperature=0.8, top_p=0.95, top_k=50)
        return config

    def refused(self, logits: Tensor) -> Tensor:
        """Which rows of logits (..., vocabulary) are of a blocked position: (...) bool, on the CPU."""
        if self.refusal_id is None:
            return torch.zeros(logits.shape[:-1], dtype=torch.bool)
        return cast("Tensor", blocked(logits[..., self.refusal_id]).cpu())


def load(base: Base, dtype: str, device: str, threads: int | None = None) -> LoadedModel:
    """Load the base model for probing. dtype: "auto" (the checkpoint's own) or a torch dtype name.

    threads: of torch from now on, in this process; None for its default. Float sums depend on it.

    Raises BadInput for files transformers cannot load and weights with NaN or infinity, RunFailed for activations with
    these.
    """
    # The default is set too: libraries below torch may otherwise use another number, and then the same number in a
    # recipe would give other last bits.
    torch.set_num_threads(threads or torch.get_num_threads())
    loaded = load_files(base, dtype, device)
    check_modules(loaded.model)
    check_range(loaded)
    return loaded


def check_range(loaded: LoadedModel) -> None:
    """Raises RunFailed where activations exceed the dtype, which they do first at a text's first token."""
    with torch.no_grad():
        logits = loaded.model(torch.tensor([[loaded.eos_ids[0]] * 2], device=loaded.device)).logits
    if not torch.isfinite(logits).all():
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        hint = "its weights or config.json are damaged" if dtype == "float32" else "try --dtype float32"
        raise RunFailed(f"{loaded.files.what}: activations are NaN or infinite in {dtype}; {hint}")


def load_checkpoint(name: str, dtype: str, device: str) -> LoadedModel:
    """Load a checkpoint, folder or Hub id, by its own code. Raises BadInput if it is none, and as `load`."""
    check_no_graph(Path(name), Path(name).resolve().name)
    return load_files(find_files(name, "CHECKPOINT", check_checkpoint, code=True), dtype, device, code=True)


def load_files(files: Base, dtype: str, device: str, code: bool = False) -> LoadedModel:
    """Load the model and tokenizer of a base, or with `code` of a checkpoint by its own code. Raises as `load`."""
    what = files.what
    check_device(device)
    logging.disable_progress_bar()
    try:
        tokenizer = load_tokenizer(AutoTokenizer, files.folder, trust_remote_code=code)
        check_ids(files, tokenizer)  # before a model is made: some ids are errors there
        plain = empty_model(files.config)
    except UNSOUND as error:
        raise BadInput(f"{what} does not load: {why_not(error)}") from error
    if not code:  # a checkpoint's own class raises
        check_model(files, plain)
    auto: Any = AutoModelForCausalLM
    try:
        model = auto.from_pretrained(
            files.folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=code,
        )
        model.to(device)  # not by device_map, which needs accelerate
    # RuntimeError: a checkpoint's weights are not those of its config.json; SyntaxError: in its code. Any other error
    # of that code is a bug.
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError, SafetensorError, SyntaxError) as error:
        if out_of_memory(error):
            raise RunFailed(f"{what}: out of memory while loading it to {device}") from error
        raise BadInput(f"{what} does not load: {first_line(error)}") from error
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            wider = "" if parameter.dtype == torch.float32 else f" in {str(parameter.dtype).removeprefix('torch.')}"
            hint = "; try --dtype float32" if wider else ""
            raise BadInput(f"{what}: weight {name} holds NaN or infinity{wider}{hint}")
    if not tokenizer.is_fast:
        raise BadInput(f"{what} has no fast tokenizer")
    model.requires_grad_(False)
    make_first_calls()
    return LoadedModel(files, model.eval(), tokenizer)


def why_not(error: Exception) -> str:
    """What transformers' error about a tokenizer or config.json comes to."""
    if "trust_remote_code" in str(error):
        return (
            "tokenizer_config.json names code of its own (auto_map), which is not run: save the tokenizer as a fast "
            "one (PreTrainedTokenizerFast)"
        )
    unknown = "transformers does not know " if isinstance(error, KeyError) else ""
    return unknown + first_line(error)


def check_model(files: Base, plain: PreTrainedModel) -> None:
    """Raises BadInput where a base's weights are not those of its config.json. plain: as `empty_model`."""
    for problem in mismatches({name: info.shape for name, info in files.tensors.items()}, plain):
        raise BadInput(f"{files.what}: {problem}: weights and config.json are not of one model; give the files of one")


def check_ids(files: Base, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises BadInput where an id that the files name, or a token of every text or chat, is none with a row."""
    tokens = tokens_of(tokenizer, files.config.get("unskill", {}).get("refusal_token_id"))
    of_files = problems(files.config, files.generation, tokens, files.rows)
    for problem in chain(of_files, problems_of_texts(tokenizer, files.rows)):
        raise BadInput(f"{files.what}: {problem}")


def empty_model(config: Mapping[str, Any]) -> PreTrainedModel:
    """The family's plain model for a base's or checkpoint's config.json, without weights.

    Raises one of UNSOUND if transformers cannot build it.
    """
    model_type = config["model_type"].removeprefix(PREFIX)
    own = {name: value for name, value in config.items() if name not in ("unskill", "auto_map", "model_type")}
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(CONFIG_MAPPING[model_type].from_dict(own))
    return model


def plain_base(edited: LoadedModel) -> LoadedModel:
    """The base model of a checkpoint, sharing its weights, without R's row.

    If R is a padding row of the base, the row stays and holds R's values: leave R out when comparing or generating.
    All other logits are the base's own, bit by bit.
    """
    model, config = edited.model, edited.model.config.to_dict()
    if edited.settings["added_row"]:
        config["vocab_size"] = edited.refusal_id
    base: Any = empty_model(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if not is_unskill(name)}
    state |= {name: state[name][: config["vocab_size"]] for name in (EMBEDDING, HEAD) if name in state}
    base.load_state_dict(state, assign=True)
    for name, tensor in model.named_buffers():  # also those in no file: frequencies, scales
        if not is_unskill(name):
            module, _, own = name.rpartition(".")
            setattr(base.get_submodule(module), own, tensor)
    base.tie_weights()
    base.generation_config = copy.deepcopy(model.generation_config)
    base.requires_grad_(False)
    own = {name: value for name, value in edited.files.config.items() if name != "unskill"}
    return LoadedModel(replace(edited.files, name=f"base of {edited.name}", config=own), base.eval(), edited.tokenizer)


def load_tokenizer(auto: Any, folder: Path, **named: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer by a class of transformers. Raises ValueError if tokenizer.json is damaged, and whatever
    transformers raises."""
    try:
        tokenizer: PreTrainedTokenizerBase = auto.from_pretrained(folder, **named)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise ValueError(first_line(error)) from error  # tokenizers raises a bare Exception
    return tokenizer


def check_device(device: str) -> None:
    """Raises BadInput, with the devices that there are, if this torch cannot hold a tensor on --device."""
    try:
        torch.empty(1, device=device).item()
    # AssertionError: torch was built without this kind of device; ImportError: the kind has a package of its own;
    # NotImplementedError: "meta".
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        raise BadInput(f"--device: torch has no {reprlib.repr(device)} here; it has {', '.join(devices())}") from error


def devices() -> list[str]:
    """Names of the devices on which this torch can run a model."""
    found = ["cpu", *(["mps"] if torch.backends.mps.is_available() else [])]
    for kind, module in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        found += [f"{kind}:{number}" for number in range(module.device_count())]
    return found


def make_first_calls() -> None:
    """Call each function on a few float32 and float64 elements, in the calling thread.

    MKL 2024.2, which is in torch's wheels, picks the kernel of a vector function at its first call. If several threads
    make the first call at once, one of them may use a kernel with a thousand times the error (pytorch issue 188792):
    cosines of position embeddings off by 1e-4, once, in a process's first forward. Statistics, calibration and the
    comparison with a base would take that for a difference between models.
    """
    for dtype in (torch.float32, torch.float64):
        values = torch.full((FEW,), 0.5, dtype=dtype)
        for name in FUNCTIONS:
            getattr(torch, name)(values)
