"""The base model: its files, its tokenizer and the live module."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.common.errors import BadInput, RunFailed, first_line
from exporter.models.families import Family, check_config, identify
from exporter.models.first_calls import make_first_calls

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Files of a base that go along as they are: its licence binds the checkpoint too.
LICENCES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
# What belongs to a model beside its weights. By name: beside a model on somebody's disk there may be anything else.
SMALL_FILES: tuple[str, ...] = (*LICENCES, "README*", ".gitattributes", "*config.json", "params.json", "*.index.json")
SMALL_FILES += ("*.jinja", "chat_template.json", "special_tokens_map.json", "added_tokens.json", "tokenizer*.json")
SMALL_FILES += (
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.tiktoken",
    "tokenizer.model*",
    "spiece.model",
)
# Everything a checkpoint may take from its base; never weights in another format.
HUB_FILES = (*SMALL_FILES, "*.json", "*.safetensors")


@dataclass(frozen=True)
class Base:
    """A base checkpoint on disk. `name`: Hub id or folder name, never a path; `revision`: commit of a Hub model."""

    folder: Path
    name: str
    revision: str | None
    config: dict[str, Any]
    shards: tuple[str, ...]


@dataclass(frozen=True)
class LoadedModel:
    base: Base
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family


def find_base(model: str, revision: str | None = None) -> Base:
    """Locate MODEL, a folder or a Hub id. Raises BadInput where something an export needs is not there.

    revision: branch, tag or commit of a Hub model."""
    return find_files(model, "MODEL", check_config, revision=revision)


def find_files(
    model: str,
    what: str,
    check: Callable[[dict[str, Any], str], None],
    code: bool = False,
    revision: str | None = None,
) -> Base:
    """Locate the files of a model, a folder or a Hub id.

    what: the argument's name, for errors; check: raises BadInput where a config.json, with the model's name, is not
    that of a model that can be used; code: with the modeling code of a checkpoint; revision: of a Hub model.

    Raises BadInput where there is no config.json, tokenizer.json or safetensors file.
    """
    folder, commit = Path(model), None
    if not os.path.isdir(folder):  # unlike Path.is_dir also of a name too long for a file
        folder, commit = download(model, what, [*HUB_FILES, *(["*.py"] if code else [])], revision)
    elif revision is not None:
        raise BadInput(f"--revision: is for models of the Hub, and {what} {folder.name} is a folder; leave it out")
    name = model if commit else folder.resolve().name
    config = read_json(folder / "config.json", name, what)
    check(config, name)
    if not (folder / "tokenizer.json").is_file():
        raise BadInput(f"{what} {name} has no tokenizer.json: a fast tokenizer is needed")
    return Base(folder, name, commit, config, find_shards(folder, name, what))


def download(model: str, what: str, patterns: Sequence[str], revision: str | None = None) -> tuple[Path, str]:
    """A Hub model's files of these names: their folder, and the commit. Raises BadInput where it cannot be reached."""
    from huggingface_hub import snapshot_download

    from exporter.common.hub import HUB_ERRORS, check_endpoint, silent_library

    check_endpoint()
    try:
        with silent_library():
            folder = Path(snapshot_download(model, revision=revision, allow_patterns=list(patterns)))
    except HUB_ERRORS as error:
        at = f" (revision {revision})" if revision else ""
        raise BadInput(f"{what} {model} is neither a folder nor a Hub model that can be reached{at}") from error
    return folder, folder.name


def find_shards(folder: Path, name: str, what: str) -> tuple[str, ...]:
    """File names of the weights; transformers prefers the single file where there are both forms, and so do we."""
    if (folder / WEIGHTS).is_file():
        return (WEIGHTS,)
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX, name, what).get("weight_map")
        found = weight_map.values() if isinstance(weight_map, dict) else ()
        if not found or not all(isinstance(shard, str) and Path(shard).name == shard for shard in found):
            raise BadInput(f"{what} {name}: {INDEX} does not say by weight_map in which file each weight is")
        shards = tuple(sorted(set(found)))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise BadInput(f"{what} {name}: {INDEX} names {missing[0]}, which is not there")
        return shards
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise BadInput(f"{what} {name} has pickle weights ({pickles[0]}), which are not read: save it as safetensors")
    raise BadInput(f"{what} {name} has no {WEIGHTS}")


def read_json(path: Path, name: str, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise BadInput(f"{what} {name} has no {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{what} {name}: {path.name} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{what} {name}: {path.name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise BadInput(f"{what} {name}: {path.name} is not a JSON object")
    return content


def check_checkpoint(config: dict[str, Any], name: str) -> None:
    """Raises BadInput where a config.json is not that of a checkpoint that unskill wrote."""
    if not isinstance(config.get("unskill"), dict):
        raise BadInput(f"CHECKPOINT {name} is not one that unskill wrote: config.json has no unskill object")


def load(base: Base, dtype: str, device: str, threads: int | None = None) -> LoadedModel:
    """Load the base model for probing. dtype: "auto" (the checkpoint's own) or a torch dtype name.

    threads: of torch from now on, in this process; None for as many as it takes. Float sums depend on it.

    Raises BadInput for files transformers cannot load, RunFailed for weights with NaN or infinity.
    """
    import torch

    # The number that torch takes is set too: libraries below it may otherwise have another of their own, and then the
    # same number given by a recipe would give other last bits.
    torch.set_num_threads(threads or torch.get_num_threads())
    model, tokenizer = load_files(base, dtype, device, "MODEL")
    return LoadedModel(base, model, tokenizer, identify(model))


def load_files(
    base: Base, dtype: str, device: str, what: str, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The live model and tokenizer of a base, or with `trust_remote_code` of a checkpoint. Same errors as `load`."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    check_device(device)
    logging.disable_progress_bar()
    # What unsound sizes in a config.json raise, by the release of transformers; SyntaxError: a checkpoint's code.
    # ImportError: an attention that is not installed.
    unsound = (TypeError, AttributeError, ArithmeticError, StrictDataclassError, SyntaxError, ImportError)
    try:
        tokenizer = load_tokenizer(AutoTokenizer, base.folder, trust_remote_code=trust_remote_code)
        auto: Any = AutoModelForCausalLM
        model, info = auto.from_pretrained(
            base.folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map=device if device != "cpu" else None,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, *unsound) as error:
        raise BadInput(f"{what} {base.name} does not load: {first_line(error)}") from error
    if info["missing_keys"]:
        raise BadInput(f"{what} {base.name} lacks weights: {sorted(info['missing_keys'])[0]}")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise RunFailed(f"{what} {base.name}: weight {name} holds NaN or infinity")
    if not tokenizer.is_fast:
        raise BadInput(f"{what} {base.name} has no fast tokenizer")
    model.requires_grad_(False)
    make_first_calls()
    return model.eval(), tokenizer


def load_tokenizer(auto: Any, folder: Path, **named: Any) -> PreTrainedTokenizerBase:
    """What a tokenizer class makes of a folder. Raises ValueError where a tokenizer.json is damaged, and what else
    transformers raises."""
    try:
        tokenizer: PreTrainedTokenizerBase = auto.from_pretrained(folder, **named)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise ValueError(first_line(error)) from error  # the tokenizers library has no class of its own for it
    return tokenizer


def check_device(device: str) -> None:
    """Raises BadInput where --device names none on which this torch can hold a tensor."""
    import torch

    try:
        torch.empty(1, device=device).item()
    # AssertionError is what a torch built without a kind of device raises of it, NotImplementedError that of "meta".
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(f"--device: '{device}' cannot be used here: {first_line(error)}") from error


def context_length(config: dict[str, Any]) -> int | None:
    """Number of positions the model was made for, where config.json says so."""
    length = config.get("max_position_embeddings")
    return int(length) if length else None
