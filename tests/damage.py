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

from custom_modeling.loading import code_sha256, record_sha256

LARGE = 8 * 2**20


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


def extra(name: str, content: bytes = b"{}") -> Damage:
    return lambda folder: put(folder / name, content)


def drop(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


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
