"""Checks of loading and saving: under settings that a checkpoint was not fitted for it must not load."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path

import torch
from common import RELEASE, Case, NotApplicable, assert_raises, check, copied, replace
from packaging import version
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig


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
def quantized_on_request(case: Case):
    chosen = BitsAndBytesConfig(load_in_8bit=True)
    assert_raises(case, case.checkpoint, RuntimeError, "quantization_config", quantization_config=chosen)
    plain = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    assert_raises(case, case.checkpoint, RuntimeError, "quantization_config", quantization_config=plain)
    assert_raises(case, case.checkpoint, RuntimeError, "load_in_8bit", load_in_8bit=True)


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
