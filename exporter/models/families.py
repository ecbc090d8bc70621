"""The model families that can be exported."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.common.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CAUSAL_LM = "ForCausalLM"
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "max_position_embeddings",
)
DTYPES = ("float32", "bfloat16", "float16")
"""In which models are probed, and refusals judged."""

# Families whose MLP is down(act(gate x) * up x), by model_type, and the oldest transformers release on which their
# checkpoints are tested (of 4.48, 4.57 and 5.0, the first that has the family).
GATED_FAMILIES = {
    "cohere": "4.48",
    "cohere2": "4.48",
    "exaone4": "4.57",
    "gemma": "4.48",
    "gemma2": "4.48",
    "gemma3_text": "4.57",
    "granite": "4.48",
    "helium": "4.57",
    "llama": "4.48",
    "ministral": "4.57",
    "mistral": "4.48",
    "olmo": "4.48",
    "olmo2": "4.48",
    "olmo3": "4.57",
    "qwen2": "4.48",
    "qwen3": "4.57",
    "seed_oss": "4.57",
    "smollm3": "4.57",
}

# Those of them that mlx_lm has, and its module.
MLX_FAMILIES = {
    "cohere": "cohere",
    "cohere2": "cohere2",
    "exaone4": "exaone4",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3_text",
    "granite": "granite",
    "helium": "helium",
    "llama": "llama",
    "mistral": "llama",
    "olmo2": "olmo2",
    "olmo3": "olmo3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "seed_oss": "seed_oss",
    "smollm3": "smollm3",
}


@dataclass(frozen=True)
class Family:
    """The classes of a loaded model."""

    model_type: str
    minimum_transformers: str
    config: type
    causal_lm: type
    model: type
    mlp: type


def check_config(config: dict[str, Any], name: str) -> None:
    """Raise BadInput, with the reason, if a model with this config.json cannot be exported."""
    model_type = config.get("model_type")
    if str(model_type).startswith("unskill_"):
        raise BadInput(f"MODEL {name} is an unskill checkpoint already: give its base model")
    if "auto_map" in config:
        raise BadInput(
            f"MODEL {name} brings its own modeling code (auto_map in config.json), which is not run: give a model of "
            "transformers' own classes; if its code is theirs, take auto_map out"
        )
    if (quantization := config.get("quantization_config")) is not None:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else quantization
        raise BadInput(
            f"MODEL {name} is quantized ({method}), not supported yet (quantization_config in config.json): give the "
            "unquantized model"
        )
    if str(model_type) in GATED_FAMILIES:
        if (problem := next(unsound(config), None)) is not None:
            raise BadInput(f"MODEL {name}: config.json: {problem}")
        return
    why = "unsupported family"
    if "text_config" in config or "vision_config" in config:
        why = "multimodal wrapper"
    elif any("expert" in key for key in config):
        why = "mixture-of-experts layers"
    supported = ", ".join(GATED_FAMILIES)
    raise BadInput(f"MODEL {name} has model_type {model_type} ({why}); supported are text-only {supported}")


def unsound(config: dict[str, Any]) -> Iterator[str]:
    """Settings of a config.json that transformers would take for others, or for which it has no clear word."""
    classes = config.get("architectures")
    if isinstance(classes, list) and classes and not any(str(each).endswith(CAUSAL_LM) for each in classes):
        yield f"architectures names {classes[0]}, not a language model (...{CAUSAL_LM}); give one, or mend the name"
    for key in SIZES:
        if key in config and (type(config[key]) is not int or config[key] < 1):
            yield f"{key} is {reprlib.repr(config[key])}, not a whole number above 0; name the model's"
    for key in ("dtype", "torch_dtype"):
        if (dtype := config.get(key)) is not None and dtype not in DTYPES:
            yield f"{key} is {reprlib.repr(dtype)}, not {', '.join(DTYPES)}; save the model anew in one of these"
    for key, value in config.items():
        if key.endswith("_eps") and (not isinstance(value, int | float) or not 0 < value < math.inf):
            yield f"{key} is {reprlib.repr(value)}, not a number above 0; name the model's"
    rope = config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        yield f"rope_parameters is {reprlib.repr(rope)}, not an object; name the model's, or leave the key out"
        return
    for each in (config, rope, *rope.values()):
        theta = each.get("rope_theta", 1.0) if isinstance(each, dict) else 1.0
        if not isinstance(theta, int | float) or not 0 < theta < math.inf:
            yield f"rope_theta is {reprlib.repr(theta)}, not a number above 0; name the model's, or leave the key out"


def check_modules(model: PreTrainedModel) -> None:
    """Raises BadInput if the modules of a base model are not as its family's should be."""
    model_type = model.config.model_type
    core: Any = model.base_model
    mlps = [getattr(layer, "mlp", None) for layer in getattr(core, "layers", [])]
    if model.base_model_prefix != "model" or not mlps or not all(is_gated(mlp) for mlp in mlps):
        raise BadInput(f"MODEL of type {model_type} has MLPs other than down(act(gate x) * up x)")
    head: Any = model.get_output_embeddings()
    if model.config.get_text_config().tie_word_embeddings and head.weight is not core.embed_tokens.weight:
        raise BadInput(
            f"MODEL of type {model_type}: config.json ties {HEAD} to {EMBEDDING}, and the files hold others under the "
            "two names, of which releases of transformers load one or both: set tie_word_embeddings to false, or take "
            f"{HEAD} out"
        )
    # R is one row of the head, both in the weights and in the states for other heads.
    if getattr(head, "bias", None) is not None:
        raise BadInput(f"MODEL of type {model_type}: its output head has a bias, not supported")


def family_of(model: PreTrainedModel) -> Family:
    """The classes of a model of one of the families."""
    core: Any = model.base_model
    model_type = model.config.model_type
    mlp = type(core.layers[0].mlp)
    return Family(model_type, GATED_FAMILIES[model_type], type(model.config), type(model), type(core), mlp)


def is_gated(mlp: Any) -> bool:
    """Whether the module computes exactly down(act(gate x) * up x): compared bit by bit on random input."""
    import torch  # here, because torch-free commands load this module

    if mlp is None or not all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return False
    weight = mlp.gate_proj.weight
    x = torch.randn(1, 3, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        expected = mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))
        return torch.equal(mlp(x), expected)
