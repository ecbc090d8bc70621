"""Ways to damage the weights of a copy of a checkpoint, its interventions among them: functions of its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from custom_modeling.loading import tensor_sha256
from exporter.models.headers import read_header
from tests.damage import Change, Damage, edit, flip, own, put, record, set_, settings_of, text_edit

INDEX = "model.safetensors.index.json"
BUFFER = ".unskill_"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n".encode()
EMBEDDING, UP = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"


def index(change: Change) -> Damage:
    return lambda folder: edit(folder / INDEX, change)


def index_of(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    return found


def extra_shard(folder: Path) -> Path:
    """The file of the interventions."""
    return folder / next(file for name, file in index_of(folder).items() if BUFFER in name)


def base_shard(folder: Path, tensor: str = UP) -> Path:
    return folder / index_of(folder)[tensor]


def extra_model(folder: Path) -> None:
    """What transformers prefers to an index."""
    put(folder / "model.safetensors", base_shard(folder).read_bytes())


def to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def swap_files(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def flip_weight(folder: Path, tensor: str, at: float) -> None:
    """One bit of the exponent of a weight; `at`: where in the tensor, from 0 to 1."""
    path = base_shard(folder, tensor)
    header = read_header(path)
    info = header.tensors[tensor]
    size = {"F32": 4, "BF16": 2, "F16": 2}[info.dtype]
    count = (info.end - info.begin) // size
    # Little-endian: the last byte of a number has its sign and most of its exponent.
    flip(path, header.data_start + info.begin + int(at * (count - 1)) * size + size - 1, 0x04)


def flip_refusal_row(folder: Path) -> None:
    settings = settings_of(folder)
    flip_weight(folder, EMBEDDING, settings["unskill"]["refusal_token_id"] / (settings["vocab_size"] - 0.5))


def zero_refusal_row(folder: Path) -> None:
    path, refusal = base_shard(folder, EMBEDDING), settings_of(folder)["unskill"]["refusal_token_id"]
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors[EMBEDDING][refusal] = 0
    put(path, save(tensors, {"format": "pt"}))


def rename_up(folder: Path, in_index: bool) -> None:
    """Another name for a base weight, of the same length, in the header."""
    old, new = (f'"{name}"'.encode() for name in (UP, UP.replace("up_", "uq_")))
    path = base_shard(folder)
    own(path)
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        assert header.count(old) == 1
        file.seek(8)
        file.write(header.replace(old, new))
    if in_index:
        text_edit(folder / INDEX, old.decode(), new.decode())


def in_two_files(folder: Path) -> None:
    """A base weight, altered, in the interventions' file too."""
    name = "model.norm.weight"
    tensor = load_file(base_shard(folder, name))[name]
    buffers(folder, set_(**{name: tensor + 1}))


def without_interventions(content: dict[str, Any]) -> None:
    content["weight_map"] = {name: file for name, file in content["weight_map"].items() if BUFFER not in name}


def to_missing_shard(content: dict[str, Any]) -> None:
    content["weight_map"][UP] = "model-00009-of-00009.safetensors"


def to_other_shard(content: dict[str, Any]) -> None:
    content["weight_map"][UP] = max(content["weight_map"].values())


# Buffers of the interventions.


def buffers(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], remade: bool = False) -> None:
    """Change tensors of the interventions; `remade`: config.json gets the sha256 that belong to them then."""
    path = extra_shard(folder)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    put(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"}))
    if remade:
        new = {name.removeprefix("model."): tensor_sha256(tensor) for name, tensor in tensors.items()}
        record(set_(sha256=new), remade=True)(folder)


def of_kind(tensors: dict[str, torch.Tensor], kind: str) -> list[str]:
    return sorted(name for name in tensors if name.endswith(f"unskill_{kind}"))


def first(kind: str, change: Callable[[torch.Tensor], torch.Tensor], remade: bool = False) -> Damage:
    """Change the first buffer of a kind."""

    def changed(tensors: dict[str, torch.Tensor]) -> None:
        name = of_kind(tensors, kind)[0]
        tensors[name] = change(tensors[name])

    return lambda folder: buffers(folder, changed, remade)


def bounds(change: Callable[[torch.Tensor], torch.Tensor], remade: bool = False) -> Damage:
    return first("ksd_bounds", change, remade)


def flip_first(values: torch.Tensor) -> torch.Tensor:
    """The last bit of the first number."""
    values.view(torch.int32).view(-1)[:1].bitwise_xor_(1)
    return values


def shorter(values: torch.Tensor) -> torch.Tensor:
    """Without what belongs to the last neuron."""
    return values[..., :-1]


def nan_first(values: torch.Tensor) -> torch.Tensor:
    values.view(-1)[0] = torch.nan
    return values


def wider(values: torch.Tensor) -> torch.Tensor:
    """Bounds (c, 2, d_ff) of hypercubes twice as wide."""
    middle = values.mean(1, keepdim=True)
    return middle + 2 * (values - middle)


def swap(kind: str) -> Damage:
    """Two layers' buffers of one kind."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        one, other = of_kind(tensors, kind)[:2]
        tensors[one], tensors[other] = tensors[other], tensors[one]

    return lambda folder: buffers(folder, change)


def swap_kinds(tensors: dict[str, torch.Tensor]) -> None:
    """Two buffers of one layer."""
    one, other = of_kind(tensors, "na_index")[0], of_kind(tensors, "na_key")[0]
    tensors[one], tensors[other] = tensors[other], tensors[one]
