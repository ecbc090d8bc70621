"""Ways to damage a copy of a checkpoint: functions of its folder.

A copy shares its large files with the original by hard links, so every change goes through `put` or `own`, which give
a file bytes of its own.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from custom_modeling.loading import code_sha256, record_sha256, tensor_sha256
from exporter.models.headers import read_header

INDEX = "model.safetensors.index.json"
LARGE = 8 * 2**20
BUFFER = ".unskill_"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n".encode()
EMBEDDING, UP = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"


def copy_of(checkpoint: Path, target: Path) -> Path:
    """A copy whose large files are hard links, where the disk allows."""

    def copy(source: str, destination: str) -> None:
        if os.path.getsize(source) > LARGE:
            os.link(os.path.realpath(source), destination)
        else:
            shutil.copyfile(source, destination)

    shutil.copytree(checkpoint, target, copy_function=copy)
    return target


def put(path: Path, content: bytes) -> None:
    """A new file in the place of what was there, whatever that shares its bytes with."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def own(path: Path) -> None:
    """Give a file bytes of its own, so that it can be changed in place."""
    beside = path.with_name(f"{path.name}.copy")
    shutil.copyfile(path, beside)
    beside.replace(path)


def flip(path: Path, at: int, mask: int = 1) -> None:
    """Change bits of one byte."""
    own(path)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ mask]))


def flip_near_end(path: Path) -> None:
    flip(path, path.stat().st_size - 5, 4)


def truncate(path: Path, keep: float) -> None:
    own(path)
    os.truncate(path, int(keep * path.stat().st_size))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    put(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def text_edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path.name} has no {old!r}"
    put(path, text.replace(old, new).encode())


Damage = Callable[[Path], Any]
Change = Callable[[dict[str, Any]], Any]
"""Of a JSON object, in place."""


def set_(**values: Any) -> Change:
    return lambda content: content.update(values)


def add(name: str, number: int) -> Change:
    return lambda content: content.update({name: content[name] + number})


def settings_of(folder: Path) -> dict[str, Any]:
    """config.json."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def config(change: Change) -> Damage:
    return lambda folder: edit(folder / "config.json", change)


def record(change: Change, remade: bool = False) -> Damage:
    """Edit config.json's unskill object; `remade`: with the sha256 that belongs to it then."""

    def changed(content: dict[str, Any]) -> None:
        change(content["unskill"])
        if remade:
            content["unskill"]["record_sha256"] = record_sha256(content["unskill"])

    return config(changed)


def index(change: Change) -> Damage:
    return lambda folder: edit(folder / INDEX, change)


def extra(name: str, content: bytes = b"{}") -> Damage:
    return lambda folder: put(folder / name, content)


def drop(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


# Weight files.


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


# config.json and code.


def no_cubes(content: dict[str, Any]) -> None:
    for counts in content["layers"].values():
        counts.pop("cubes", None)


def greater_alpha(content: dict[str, Any]) -> None:
    for skill in content["skills"]:
        if "alpha" in skill:
            skill["alpha"]["value"] *= 2


def plain_type(content: dict[str, Any]) -> None:
    content["model_type"] = content["model_type"].removeprefix("unskill_")


def wrong_class(content: dict[str, Any]) -> None:
    content["auto_map"]["AutoModelForCausalLM"] = content["auto_map"]["AutoModel"]


def code_of(folder: Path) -> Path:
    return next(folder.glob("modeling_unskill_*.py"))


def edit_code(folder: Path, remade: bool = False) -> None:
    """Open the refusal; `remade`: config.json gets the sha256 that belongs to the code then."""
    text_edit(code_of(folder), "hit | after_refusal", "after_refusal")
    if remade:
        record(set_(code_sha256=code_sha256(code_of(folder))), remade=True)(folder)


def has_mlx(folder: Path) -> bool:
    return any(folder.glob("mlx_unskill_*.py"))


def mlx_of(folder: Path) -> Path:
    return next(folder.glob("mlx_unskill_*.py"))


def edit_mlx(folder: Path, remade: bool = False) -> None:
    """As `edit_code`, of the file for MLX."""
    text_edit(mlx_of(folder), "hit | after_refusal", "after_refusal")
    if remade:
        record(set_(mlx_sha256=code_sha256(mlx_of(folder))), remade=True)(folder)


def cut_code(folder: Path) -> None:
    content = code_of(folder).read_bytes()
    put(code_of(folder), content[: content.rindex(b"def ") + 4])


def older_code(folder: Path) -> None:
    text_edit(code_of(folder), "written by unskill ", "written by unskill 0.0.")


# The ONNX folder beside a checkpoint.


def onnx_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-onnx")


def cut_onnx(folder: Path) -> None:
    truncate(next((onnx_of(folder) / "onnx").glob("*.onnx_data")), 0.9)


def onnx_record(change: Change) -> Damage:
    """Edit self_check.json, with the sha256 that belongs to it then."""

    def changed(content: dict[str, Any]) -> None:
        change(content)
        content["record_sha256"] = record_sha256(content)

    return lambda folder: edit(onnx_of(folder) / "self_check.json", changed)
