"""Checks of loading and saving: whatever is not the whole, unaltered checkpoint as it was fitted must not load."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from common import Case, NotApplicable, check
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig


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


def extra_shard(folder: Path) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    return folder / next(file for name, file in index["weight_map"].items() if ".unskill_" in name)


def autos(case: Case):
    return [AutoModelForCausalLM, case.auto_model] if case.closed else [AutoModelForCausalLM]


def assert_raises(case: Case, folder: Path, kind: type[Exception], *words: str, **options) -> None:
    for auto in autos(case):
        try:
            case.load(folder=folder, auto=auto, **options)
        except kind as error:
            for word in words:
                assert word in str(error), f"{type(error).__name__} does not say {word}: {error}"
            continue
        raise AssertionError(f"{auto.__name__} loads")


@check
def loads(case: Case):
    config = AutoConfig.from_pretrained(case.checkpoint, trust_remote_code=True)
    assert type(case.model.config) is type(config) and config.model_type == case.config["model_type"]
    assert config.vocab_size == case.model.get_input_embeddings().weight.shape[0]
    assert case.model.config.auto_map and type(case.model).__module__.startswith("transformers_modules.")
    model, info = AutoModelForCausalLM.from_pretrained(
        case.checkpoint, trust_remote_code=True, output_loading_info=True
    )
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert type(model) is type(case.model)


@check
def tokenizer_without_trust(case: Case):
    """A tokenizer runs no code of the checkpoint."""
    with contextlib.redirect_stdout(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(case.checkpoint)
    assert tokenizer.decode([case.refusal]) == case.message
    assert tokenizer(case.blocked[0])["input_ids"] == case.tokenizer(case.blocked[0])["input_ids"]


@check
def without_trust(case: Case):
    for auto in [AutoConfig, AutoModelForCausalLM, case.auto_model]:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the question
                auto.from_pretrained(case.checkpoint)
        except (ValueError, OSError) as error:
            assert "trust_remote_code" in str(error), error
            continue
        raise AssertionError(f"{auto.__name__} loads without trust_remote_code")


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


@check
def buffer_altered(case: Case):
    names = list(load_file(extra_shard(case.checkpoint)))
    for name in names:
        for change in (
            lambda tensor: tensor.view(-1)[:1].mul_(1.0001),
            lambda tensor: tensor.fill_(torch.nan),
            lambda tensor: tensor.fill_(torch.inf),
        ):
            with copied(case) as folder:
                tensors = load_file(extra_shard(folder))
                change(tensors[name])
                extra_shard(folder).unlink()
                save_file(tensors, folder / extra_shard(case.checkpoint).name, {"format": "pt"})
                assert_raises(case, folder, RuntimeError, "unskill", name.removeprefix("model."))


@check
def buffer_of_other_shape(case: Case):
    with copied(case) as folder:
        tensors = load_file(extra_shard(folder))
        name = next(iter(tensors))
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
def quantised_on_request(case: Case):
    chosen = BitsAndBytesConfig(load_in_8bit=True)
    assert_raises(case, case.checkpoint, RuntimeError, "quantization_config", quantization_config=chosen)
    plain = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    assert_raises(case, case.checkpoint, RuntimeError, "quantization_config", quantization_config=plain)
    assert_raises(case, case.checkpoint, RuntimeError, "load_in_8bit", load_in_8bit=True)


@check
def quantised_in_config(case: Case):
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
    with copied(case) as folder:
        replace(folder / "config.json", json.dumps({**case.config, "quantization_config": settings}).encode())
        assert_raises(case, folder, RuntimeError, "quantization_config")


@check
def tensor_parallel(case: Case):
    assert_raises(case, case.checkpoint, RuntimeError, "tp_plan", tp_plan="auto")


@check
def distributed_config(case: Case):
    try:
        from transformers.distributed import DistributedConfig
    except ImportError as error:
        raise NotApplicable("this release has no distributed_config") from error
    assert_raises(case, case.checkpoint, RuntimeError, "distributed_config", distributed_config=DistributedConfig())


@check
def allow_unprobed(case: Case):
    model = case.load(unskill_allow_unprobed=True)
    case.assert_refused(case.generate(model, case.blocked[0])[0])
    try:
        case.load(unskill_allow_unprobed=True, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    except Exception as error:  # bitsandbytes is not there: what matters is that it came so far
        assert "unskill" not in str(error), error


@check
def saved_again(case: Case):
    """save_pretrained gives a checkpoint that loads and refuses; once more from that one."""
    source = case.model
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):
            target = Path(folder) / name
            source.save_pretrained(target)
            case.tokenizer.save_pretrained(target)
            config = json.loads((target / "config.json").read_text(encoding="utf-8"))
            assert config["model_type"] == case.config["model_type"] and config["unskill"] == case.settings
            assert "AutoModelForCausalLM" in config["auto_map"] and list(target.glob("modeling_unskill_*.py"))
            tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=True)
            assert tokenizer.decode([case.refusal]) == case.message
            for text in [*case.blocked, *case.answered]:
                ids = [each(text, add_special_tokens=False)["input_ids"] for each in (tokenizer, case.tokenizer)]
                assert ids[0] == ids[1]
            source = case.load(folder=target)
            for text in case.blocked:
                case.assert_refused(case.generate(source, text)[0])
            inputs = case.encode(case.mixed)
            logits = [case.forward(model, inputs).logits for model in (source, case.model)]
            assert torch.equal(*logits)
            assert not source.config.to_dict().get("quantization_config")


@check
def saved_in_other_dtype(case: Case):
    """Buffers stay as they are when the rest is saved in bfloat16."""
    with tempfile.TemporaryDirectory() as folder:
        case.load("bfloat16").save_pretrained(folder)
        assert case.load("bfloat16", folder=folder).dtype == torch.bfloat16


@check
def device_map(case: Case):
    model = case.load(device_map="auto")
    case.assert_refused(case.generate(model, case.blocked[0])[0])


@check
def built_from_config(case: Case):
    """A model without weights refuses everything: its bounds are NaN."""
    config = AutoConfig.from_pretrained(case.checkpoint, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True).eval()
    logits = case.forward(model, case.encode(case.answered[0])).logits
    assert int(logits[0, -1].argmax()) == case.refusal
