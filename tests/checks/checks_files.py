"""Checks of the files: whatever is not the whole, unaltered checkpoint as it was fitted must not load."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from common import Case, NotApplicable, assert_raises, check, copied, replace
from safetensors.torch import load_file, save_file


def extra_shard(folder: Path) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    return folder / next(file for name, file in index["weight_map"].items() if ".unskill_" in name)


@check
def shard_missing(case: Case):
    with copied(case) as folder:
        extra_shard(folder).unlink()
        assert_raises(case, folder, (OSError, RuntimeError))


@check
def shard_truncated(case: Case):
    for keep in (0.9, 0.3, 0):
        with copied(case) as folder:
            content = extra_shard(folder).read_bytes()
            replace(extra_shard(folder), content[: int(keep * len(content))])
            assert_raises(case, folder, Exception)


def some_buffers(case: Case) -> dict[str, torch.Tensor]:
    """Of each kind of buffer those in the first and the last layer that has it."""
    tensors = load_file(extra_shard(case.checkpoint))

    def layer(name: str) -> int:
        return int(name.split(".layers.")[1].split(".")[0]) if ".layers." in name else -1

    kinds: dict[str, list[str]] = {}
    for name in sorted(tensors, key=layer):
        kinds.setdefault(name.rpartition(".")[2], []).append(name)
    return {name: tensors[name] for names in kinds.values() for name in (names[0], names[-1])}


@check
def buffer_altered(case: Case):
    for name, stored in some_buffers(case).items():
        changes = [lambda tensor: tensor.view(-1)[-1:].add_(1)]
        if stored.is_floating_point():
            changes = [
                lambda tensor: tensor.view(-1)[:1].mul_(1.0001),
                lambda tensor: tensor.fill_(torch.nan),
                lambda tensor: tensor.fill_(torch.inf),
            ]
        for change in changes:
            with copied(case) as folder:
                tensors = load_file(extra_shard(folder))
                change(tensors[name])
                extra_shard(folder).unlink()
                save_file(tensors, folder / extra_shard(case.checkpoint).name, {"format": "pt"})
                assert_raises(case, folder, RuntimeError, "unskill", name.removeprefix("model."))


@check
def buffer_of_other_shape(case: Case):
    for name in some_buffers(case):
        with copied(case) as folder:
            tensors = load_file(extra_shard(folder))
            tensors[name] = tensors[name][..., 1:].contiguous()
            extra_shard(folder).unlink()
            save_file(tensors, folder / extra_shard(case.checkpoint).name, {"format": "pt"})
            assert_raises(case, folder, Exception)


@check
def buffer_missing(case: Case):
    with copied(case) as folder:
        extra_shard(folder).unlink()
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text(encoding="utf-8"))
        index["weight_map"] = {name: file for name, file in index["weight_map"].items() if ".unskill_" not in name}
        replace(path, json.dumps(index).encode())
        assert_raises(case, folder, RuntimeError, "unskill")


@check
def weight_missing(case: Case):
    """One of the base's weights under another name: transformers draws it at random, with a warning."""
    with copied(case) as folder:
        index = folder / "model.safetensors.index.json"
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        name = next(name for name in files if ".layers.0.self_attn." in name and name.endswith(".weight"))
        shard = folder / files[name]
        other = name.replace(".self_attn.", ".attn_self.")
        for path in (index, shard):
            replace(path, path.read_bytes().replace(name.encode(), other.encode()))
        assert_raises(case, folder, RuntimeError, "unskill", name.removeprefix("model."))


@check
def weight_left_over(case: Case):
    with copied(case) as folder:
        tensors = load_file(extra_shard(folder)) | {"model.layers.0.mlp.stray": torch.ones(1)}
        target = extra_shard(folder)
        target.unlink()
        save_file(tensors, target, {"format": "pt"})
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text(encoding="utf-8"))
        index["weight_map"]["model.layers.0.mlp.stray"] = target.name
        replace(path, json.dumps(index).encode())
        assert_raises(case, folder, RuntimeError, "unskill", "layers.0.mlp.stray")


@check
def weight_of_other_shape(case: Case):
    """As loaded with an option that lets it through."""
    with copied(case) as folder:
        config = {**case.config, "vocab_size": case.config["vocab_size"] + 1}
        replace(folder / "config.json", json.dumps(config).encode())
        assert_raises(case, folder, RuntimeError, "unskill", "another shape", ignore_mismatched_sizes=True)


@check
def record_edited(case: Case):
    edits = {"seed": case.settings["seed"] + 1, "eos_token_id": 0, "layers": {}, "skills": [], "draws": "expected"}
    edits |= {"record_sha256": None, "base_model": "other"}
    for name, value in edits.items():
        with copied(case) as folder:
            config = {**case.config, "unskill": {**case.settings, name: value}}
            replace(folder / "config.json", json.dumps(config).encode())
            assert_raises(case, folder, RuntimeError, "unskill", "record_sha256")


@check
def record_in_another_order(case: Case):
    """What says the same is the same: order, indentation, escapes."""
    with copied(case) as folder:
        record = dict(reversed(list(case.settings.items())))
        replace(folder / "config.json", json.dumps({**case.config, "unskill": record}).encode())
        case.load(folder=folder)


@check
def code_edited(case: Case):
    with copied(case) as folder:
        path = next(folder.glob("modeling_unskill_*.py"))
        text = path.read_bytes()
        replace(path, text.replace(b"hit | after_refusal", b"hit & after_refusal"))
        assert_raises(case, folder, RuntimeError, "unskill", "code_sha256")
        replace(path, text.replace(b"\n", b"\r\n"))  # as git checks it out on Windows
        case.load(folder=folder)


@check
def other_model_type(case: Case):
    with copied(case) as folder:
        config = {**case.config, "model_type": case.config["model_type"].removeprefix("unskill_")}
        replace(folder / "config.json", json.dumps(config).encode())
        assert_raises(case, folder, RuntimeError, "unskill", "model_type")


@check
def other_end(case: Case):
    """generation_config.json without the EOS that follows a refusal, although config.json has it."""
    if not case.refuses:
        raise NotApplicable("nothing is refused")
    for end in (case.eos + 1, None):
        with copied(case) as folder:
            path = folder / "generation_config.json"
            generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            path.unlink(missing_ok=True)
            path.write_text(json.dumps({**generation, "eos_token_id": end}), encoding="utf-8")
            try:
                case.load(folder=folder)
            except RuntimeError as error:
                assert "unskill" in str(error) and "eos_token_id" in str(error), error
            else:
                raise AssertionError("loads")


@check
def unknown_format(case: Case):
    with copied(case) as folder:
        for value in (None, 99):
            settings = {**case.settings, "format": value}
            replace(folder / "config.json", json.dumps({**case.config, "unskill": settings}).encode())
            assert_raises(case, folder, ValueError, "unskill.format")


@check
def settings_missing(case: Case):
    with copied(case) as folder:
        config = {name: value for name, value in case.config.items() if name != "unskill"}
        replace(folder / "config.json", json.dumps(config).encode())
        assert_raises(case, folder, ValueError, "unskill")


@check
def quantized_in_config(case: Case):
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
    with copied(case) as folder:
        replace(folder / "config.json", json.dumps({**case.config, "quantization_config": settings}).encode())
        assert_raises(case, folder, RuntimeError, "quantization_config")
