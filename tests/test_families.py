"""Every supported family as a tiny random model, and every other kind of model refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_checks import load_case, run
from transformers import AutoConfig, AutoModelForCausalLM

from exporter.common.errors import BadInput
from exporter.models.families import FAMILIES, MISSING, MIXTURE, check_modules, family_of
from exporter.models.files import find_base
from tests.tiny import Exported, one_thread, tiny_export, tiny_model

FEW = [
    "tokenizer",
    "padded_batch",
    "identity_float32_sdpa",
    "identity_bfloat16_eager",
    "base_model_class",
    "steps_from_embeddings",
    "copied_while_running",
    "settings_that_move_activations",
    "settings_that_move_nothing",
    "saved_again",
    "weight_missing",
    "weight_left_over",
    "weight_of_other_shape",
]
# With neurons changed, the base is one with the same neurons changed by hand or, for both methods, by a checkpoint.
NEURONS = {
    "na": ["padded_batch", "identity_float32_sdpa", "base_model_class", "neurons_moved", "adjusted_batched"],
    "na+ksd": ["padded_batch", "identity_float32_sdpa", "neurons_moved", "adjusted_without_cache"],
    "sp": ["padded_batch", "identity_float32_sdpa", "base_model_class", "tokenizer"],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "padding rows": {"padding_rows": 7},
    "one padding row": {"padding_rows": 1},
    "tied": {"tie_word_embeddings": True},
    "biases": {"mlp_bias": True, "attention_bias": True},
    "bfloat16": {"dtype": torch.bfloat16},
    "several shards": {"shard_size": "60KB"},
    "scaled positions": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}},
}


# One family in make test, the others in make test-all.
ONE_NOW = [pytest.param(each, marks=() if each == "llama" else pytest.mark.slow) for each in FAMILIES]
NO_MIXTURES = [each for each in ONE_NOW if FAMILIES[str(each.values[0])].form is not MIXTURE]


def passes(exported: Exported, names: list[str]) -> None:
    with one_thread():
        results = run(names, load_case(exported.base, exported.checkpoint, exported.prompts))
    assert {name: result for name, result in results.items() if result.startswith("failed")} == {}


@pytest.mark.parametrize("family", ONE_NOW)
def test_family(family: str, tiny: Callable[..., Exported]) -> None:
    """A blocked row in a batch of rows that stay the base's bit by bit; AutoModel raises, for the states of a random
    model cannot be told apart; saved and loaded again it is the same."""
    exported = tiny(family)
    assert json.loads((exported.checkpoint / "config.json").read_text())["unskill"]["base_model"] == "raises"
    passes(exported, FEW)


@pytest.mark.parametrize("method", ["na", "na+ksd"])
@pytest.mark.parametrize("family", NO_MIXTURES)
def test_neurons(family: str, method: str, tiny: Callable[..., Exported]) -> None:
    """Neurons are moved, equal to the same by hand bit by bit, and in every batch alike; with a refusal beside it."""
    passes(tiny(family, method), NEURONS[method])


@pytest.mark.slow
def test_pruned(tiny: Callable[..., Exported]) -> None:
    passes(tiny("llama", "sp"), NEURONS["sp"])


@pytest.mark.parametrize("method", ["na", "na+ksd"])
@pytest.mark.parametrize("variant", ["biases", "bfloat16", "padding rows"])
@pytest.mark.slow
def test_neurons_variant(variant: str, method: str, tmp_path: Path) -> None:
    exported = tiny_export(tmp_path, "llama", method=method, **VARIANTS[variant])
    passes(exported, [*NEURONS[method], "identity_bfloat16_eager", "tokenizer", "saved_again"])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.slow
def test_variant(variant: str, tmp_path: Path) -> None:
    exported = tiny_export(tmp_path, "llama", **VARIANTS[variant])
    settings = json.loads((exported.checkpoint / "config.json").read_text())["unskill"]
    assert settings["added_row"] is ("padding_rows" not in VARIANTS[variant])
    assert settings["dtype"] == str(VARIANTS[variant].get("dtype", torch.float32)).removeprefix("torch.")
    passes(exported, FEW)


MOE = {"num_local_experts": 8, "num_experts_per_tok": 2}
UNREAD = "mixture-of-experts layers in a form that is not read"
LISTED = "`unskill families` lists what is supported"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "dbrx", **MOE}, f"dbrx ({UNREAD}); {LISTED}"),
        (
            {"model_type": "glm4_moe_lite", "num_experts": 60},
            f"glm4_moe_lite ({UNREAD}); nearest by name is glm4_moe; {LISTED}",
        ),
        (
            {"model_type": "gpt2"},
            f"model_type gpt2 (unsupported family): its MLPs are not named model.layers.N.mlp; {LISTED}",
        ),
        (
            {"model_type": "phi"},
            f"phi (unsupported family): its output head has a bias; nearest by name is phi3; {LISTED}",
        ),
        ({"model_type": "t5", "is_encoder_decoder": True}, f"model_type t5 (not a causal language model); {LISTED}"),
        (
            {"model_type": "gemma3", "text_config": {}, "vision_config": {}},
            f"model_type gemma3 (multimodal wrapper); nearest by name is gemma; {LISTED}",
        ),
        ({"hidden_size": 8}, f"model_type None (unsupported family); {LISTED}"),
        ({"model_type": "qwen3_moe"}, "config.json: it says none of num_experts, "),
        ({"model_type": "qwen3_moe", "num_experts": 0}, "config.json: num_experts is 0, not a whole number above 0"),
        (
            {"model_type": "mixtral", **MOE, "num_experts_per_tok": 9},
            "num_experts_per_tok is 9, and there are 8 experts",
        ),
        ({"model_type": "llama", "auto_map": {"AutoModel": "x.Y"}}, "its own modeling code (auto_map"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "quantized (gptq)"),
        ({"model_type": "unskill_llama", "auto_map": {}}, "an unskill checkpoint already: give its base model"),
    ],
)
def test_refused_by_name(config: dict[str, Any], why: str, tmp_path: Path) -> None:
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput) as error:
        find_base(str(folder))
    assert "some-model" in str(error.value) and why in str(error.value)


@pytest.mark.parametrize("family", MISSING)
def test_what_is_said_to_keep_others_out_is_so(family: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family))
    names, said = [name for name, _ in model.named_modules()], MISSING[family]
    mlps = [name for name in names if re.fullmatch(r"model\.layers\.\d+\.mlp", name)]
    assert ("head has a bias" in said) == (getattr(model.get_output_embeddings(), "bias", None) is not None)
    if "not named" in said:
        assert not mlps
    elif "no modules" in said:
        assert not [name for name in names if "mlp" in name.rpartition(".")[2]] and "fc1" in str(model)
    elif "experts have biases" in said:
        mlp = model.get_submodule(mlps[0]).bfloat16()
        x = torch.empty(1, 2, model.config.hidden_size, device="meta", dtype=torch.bfloat16)
        assert isinstance(mlp(x), tuple)
        assert any(name.endswith("bias") for name, _ in mlp.experts.named_parameters())


def test_a_checkpoint_is_no_base(tiny: Callable[..., Exported]) -> None:
    with pytest.raises(BadInput, match="unskill checkpoint already"):
        find_base(str(tiny("llama").checkpoint))


def test_a_head_with_a_bias_is_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path))
    check_modules(model)
    assert family_of(model).model_type == "llama"
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.lm_head.out_features))
    with pytest.raises(BadInput, match="MODEL of type llama: its output head has a bias"):
        check_modules(model)
