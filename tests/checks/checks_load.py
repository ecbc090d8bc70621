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
from common import RELEASE, Case, NotApplicable, check
from packaging import version
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
    rope = case.config.get("rope_parameters") or {}
    if rope.get("rope_type") in ("llama3", "yarn", "longrope") and version.parse("5.0") < RELEASE:
        raise NotApplicable("without the family's config class transformers cannot read this kind of rope")
    with contextlib.redirect_stdout(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(case.checkpoint)
    base = AutoTokenizer.from_pretrained(case.base, trust_remote_code=True)
    assert not case.refuses or tokenizer.decode([case.refusal]) == case.message
    for text in [*case.blocked, *case.answered]:
        ids = [each(text)["input_ids"] for each in (tokenizer, case.tokenizer, base)]
        assert ids[0] == ids[1] == ids[2]


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


# Of every release and form of config.json; the numbers are those of no model.
MOVING = {
    "rms_norm_eps": 0.37,
    "layer_norm_eps": 0.37,
    "rope_theta": 123.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0, "rope_theta": 123.0},
    "rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 123.0},
    "sliding_window": 3,
    "final_logit_softcapping": 0.37,
    "query_pre_attn_scalar": 37,
    "logits_scaling": 37.0,
    "hidden_act": "relu",
}
HARMLESS = {"use_cache": False, "pad_token_id": 1, "bos_token_id": 2, "output_hidden_states": True}


@check
def settings_that_move_activations(case: Case):
    """Passed to from_pretrained or edited in config.json they raise, unless that is allowed."""
    now = {name: getattr(case.model.config, name, None) for name in MOVING}
    known = {name: value for name, value in MOVING.items() if now[name] is not None}
    if now["hidden_act"] == "xielu":  # its weights are missed first
        del known["hidden_act"]
    # Some classes need keys of these objects that others do not have.
    objects = {name: value for name, value in known.items() if isinstance(value, dict) and isinstance(now[name], dict)}
    known |= {name: {**now[name], **value} for name, value in objects.items()}
    # Gemma 3 has some for each kind of attention, Phi-3's config takes no other kind.
    if "full_attention" in (now["rope_parameters"] or {}) or case.config["model_type"] == "unskill_phi3":
        known = {name: value for name, value in known.items() if name not in ("rope_parameters", "rope_scaling")}
    assert known
    for name, value in known.items():
        said = name.replace("rope_scaling", "rope_")  # another name of rope_parameters on 5.x
        assert_raises(case, case.checkpoint, RuntimeError, "unskill", said, "unskill_allow_unprobed", **{name: value})
        with copied(case) as folder:
            replace(folder / "config.json", json.dumps({**case.config, name: value}).encode())
            read = getattr(AutoConfig.from_pretrained(folder, trust_remote_code=True), name)
            if read == value:  # where a newer form of the same setting is in the file, that one counts
                assert_raises(case, folder, RuntimeError, "unskill")
    name = next(iter(known))
    case.load(**{name: known[name]}, unskill_allow_unprobed=True)


@check
def settings_that_move_nothing(case: Case):
    assert_as_before(case, case.load(**HARMLESS))
    case.load(attn_implementation="eager")


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
def quantized_on_request(case: Case):
    chosen = BitsAndBytesConfig(load_in_8bit=True)
    assert_raises(case, case.checkpoint, RuntimeError, "quantization_config", quantization_config=chosen)
    plain = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    assert_raises(case, case.checkpoint, RuntimeError, "quantization_config", quantization_config=plain)
    assert_raises(case, case.checkpoint, RuntimeError, "load_in_8bit", load_in_8bit=True)


@check
def quantized_in_config(case: Case):
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
    assert_as_before(case, case.load(unskill_allow_unprobed=True))
    try:
        case.load(unskill_allow_unprobed=True, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    except Exception as error:  # bitsandbytes is not there: what matters is that it came so far
        assert "unskill" not in str(error), error


def assert_as_before(case: Case, model) -> None:
    for text in case.blocked[:1]:
        case.assert_refused(case.generate(model, text)[0])
    inputs = case.encode(case.mixed)
    assert torch.equal(*(case.forward(each, inputs).logits for each in (model, case.model)))


@check
def saved_again(case: Case):
    """save_pretrained gives a checkpoint that loads, refuses and computes the same; once more from that one."""
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
            assert not case.refuses or tokenizer.decode([case.refusal]) == case.message
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
    assert_as_before(case, case.load(device_map="auto"))


@check
def built_from_config(case: Case):
    """A model without weights does not run, for its buffers are not filled; with those of another it is like it."""
    config = AutoConfig.from_pretrained(case.checkpoint, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True).eval()
    inputs = case.encode(case.answered[0])
    try:
        case.forward(model, inputs)
    except RuntimeError as error:
        assert "unskill: buffer " in str(error), error
    else:
        raise AssertionError("runs without its buffers")
    whole = case.load()
    model.load_state_dict(whole.state_dict())
    ours, theirs = (case.forward(each.float(), inputs).logits for each in (model, whole))
    assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-4), f"differs by {(ours - theirs).abs().max()}"
