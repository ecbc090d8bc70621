"""The model families that can be exported."""

from __future__ import annotations

import copy
import difflib
import math
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
EXPERTS = "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"
EXPERTS_PER_TOKEN = "num_experts_per_tok", "moe_k"
DTYPES = ("float32", "bfloat16", "float16")
"""In which models are probed, and refusals judged."""


@dataclass(frozen=True)
class Form:
    """How an MLP is written: what it computes, the runtime's mixin for it, and the names of its parts.

    read: the linear modules that the key comes from, that of the pre-activations first; key: name of the key's size in
    config.json; methods: those that work on it, na and ksd also together.
    """

    computes: str
    mixin: str
    read: tuple[str, ...]
    act: str = "act_fn"
    down: str = "down_proj"
    key: str = "intermediate_size"
    methods: tuple[str, ...] = ("ksd", "na", "sp")


GATED = Form("down(act(gate x) * up x)", "GatedMLP", ("gate_proj", "up_proj"))
FUSED = Form("down(act(gate x) * up x), gate and up in one matrix", "FusedMLP", ("gate_up_proj",), "activation_fn")
UNGATED = Form("down(act(up x))", "UngatedMLP", ("up_proj",))
MIXTURE = Form("a mixture of experts", "Mixture", (), "", "", "hidden_size", ("ksd",))


@dataclass(frozen=True)
class Supported:
    """A family: the form of its MLPs, and the oldest transformers release on which its checkpoints are tested (of
    4.48, 4.57, 5.0 and 5.23, the first that has the family)."""

    form: Form
    since: str


# By model_type.
FAMILIES = {
    "apertus": Supported(UNGATED, "5.23"),
    "arcee": Supported(UNGATED, "4.57"),
    "cohere": Supported(GATED, "4.48"),
    "cohere2": Supported(GATED, "4.48"),
    "cwm": Supported(GATED, "5.0"),
    "deepseek_v2": Supported(MIXTURE, "5.0"),
    "deepseek_v3": Supported(MIXTURE, "5.0"),
    "diffllama": Supported(GATED, "5.0"),
    "doge": Supported(GATED, "5.0"),
    "dots1": Supported(MIXTURE, "5.0"),
    "ernie4_5": Supported(GATED, "4.57"),
    "ernie4_5_moe": Supported(MIXTURE, "5.0"),
    "exaone4": Supported(GATED, "4.57"),
    "flex_olmo": Supported(MIXTURE, "5.0"),
    "gemma": Supported(GATED, "4.48"),
    "gemma2": Supported(GATED, "4.48"),
    "gemma3_text": Supported(GATED, "4.57"),
    "glm": Supported(FUSED, "4.48"),
    "glm4": Supported(FUSED, "4.57"),
    "glm4_moe": Supported(MIXTURE, "5.0"),
    "gpt_oss": Supported(MIXTURE, "5.0"),
    "granite": Supported(GATED, "4.48"),
    "helium": Supported(GATED, "4.57"),
    "hunyuan_v1_dense": Supported(GATED, "4.57"),
    "hyperclovax": Supported(GATED, "5.23"),
    "jais2": Supported(UNGATED, "5.0"),
    "llama": Supported(GATED, "4.48"),
    "ministral": Supported(GATED, "4.57"),
    "ministral3": Supported(GATED, "5.0"),
    "mistral": Supported(GATED, "4.48"),
    "mixtral": Supported(MIXTURE, "5.23"),
    "nanochat": Supported(replace(UNGATED, read=("fc1",), act="activation_fn", down="fc2"), "5.0"),
    "nemotron": Supported(UNGATED, "4.48"),
    "olmo": Supported(GATED, "4.48"),
    "olmo2": Supported(GATED, "4.48"),
    "olmo3": Supported(GATED, "4.57"),
    "olmoe": Supported(MIXTURE, "4.48"),
    "phi3": Supported(FUSED, "4.48"),
    "phimoe": Supported(MIXTURE, "5.23"),
    "qwen2": Supported(GATED, "4.48"),
    "qwen2_moe": Supported(MIXTURE, "4.48"),
    "qwen3": Supported(GATED, "4.57"),
    "qwen3_moe": Supported(MIXTURE, "4.57"),
    "seed_oss": Supported(GATED, "4.57"),
    "smollm3": Supported(GATED, "4.57"),
    "stablelm": Supported(GATED, "4.48"),
    "starcoder2": Supported(replace(UNGATED, read=("c_fc",), act="act", down="c_proj"), "4.48"),
    "vaultgemma": Supported(GATED, "4.57"),
    "youtu": Supported(GATED, "5.23"),
}

# Those of them whose checkpoints mlx_lm takes, and its module.
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

# By model_type: what keeps other families out, where it is known.
MISSING = {
    **dict.fromkeys(("codegen", "gptj", "phi"), "its output head has a bias"),
    **dict.fromkeys(
        ("bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "granitemoehybrid", "lfm2", "mpt"),
        "its MLPs are not named model.layers.N.mlp",
    ),
    "opt": "its MLPs are no modules of their own",
}


@dataclass(frozen=True)
class Family:
    """The classes of a loaded model."""

    model_type: str
    minimum_transformers: str
    config: type
    causal_lm: type
    model: type
    mlps: tuple[type, ...]
    form: Form


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
    if str(model_type) in FAMILIES:
        if (problem := next(unsound(config), None)) is not None:
            raise BadInput(f"MODEL {name}: config.json: {problem}")
        return
    why = "unsupported family"
    if config.get("is_encoder_decoder") is True:
        why = "not a causal language model"
    elif "text_config" in config or "vision_config" in config:
        why = "multimodal wrapper"
    elif any("expert" in key for key in config):
        why = "mixture-of-experts layers in a form that is not read"
    missing = f": {MISSING[str(model_type)]}" if str(model_type) in MISSING else ""
    nearest = "".join(
        f"; nearest by name is {each}" for each in difflib.get_close_matches(str(model_type), FAMILIES, 1)
    )
    said = f"has model_type {model_type} ({why}){missing}{nearest}"
    raise BadInput(f"MODEL {name} {said}; `unskill families` lists what is supported")


def unsound(config: dict[str, Any]) -> Iterator[str]:
    """Settings of a config.json that transformers would take for others, or for which it has no clear word."""
    classes = config.get("architectures")
    if isinstance(classes, list) and classes and not any(str(each).endswith(CAUSAL_LM) for each in classes):
        yield f"architectures names {classes[0]}, not a language model (...{CAUSAL_LM}); give one, or mend the name"
    for key in (*SIZES, *EXPERTS, *EXPERTS_PER_TOKEN):
        if key in config and (type(config[key]) is not int or config[key] < 1):
            yield f"{key} is {reprlib.repr(config[key])}, not a whole number above 0; name the model's"
    experts = {key: config[key] for key in EXPERTS if key in config}
    if FAMILIES[config["model_type"]].form is MIXTURE and not experts:
        yield f"it says none of {', '.join(EXPERTS)}; name the model's number of experts"
    for key in (key for key in EXPERTS_PER_TOKEN if experts and config.get(key, 1) > min(experts.values())):
        yield f"{key} is {config[key]}, and there are {min(experts.values())} experts; name the model's"
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
    form = FAMILIES[model_type].form
    mlps = [getattr(layer, "mlp", None) for layer in getattr(core, "layers", [])]
    if model.base_model_prefix != "model" or not has_form(mlps, form, model.config):
        raise BadInput(f"MODEL of type {model_type} has MLPs other than {form.computes}")
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
    supported = FAMILIES[model_type]
    mlps = tuple(dict.fromkeys(type(layer.mlp) for layer in core.layers))
    classes = type(model.config), type(model), type(core)
    return Family(model_type, supported.since, *classes, mlps, supported.form)


def form_of(model: PreTrainedModel) -> Form:
    """How the MLPs of a base or a checkpoint are written."""
    return FAMILIES[model.config.model_type.removeprefix("unskill_")].form


def has_form(mlps: Sequence[Any], form: Form, config: Any) -> bool:
    """Whether MLPs compute exactly what the runtime does with this form: compared bit by bit."""
    if form is MIXTURE:
        return None not in mlps and any(hasattr(mlp, "experts") for mlp in mlps)
    parts = (*form.read, form.act, form.down)
    named = all(hasattr(mlp, name) for mlp in mlps for name in parts)
    return bool(mlps) and named and all(same_as_twin(mlp, form, config) for mlp in mlps)


def same_as_twin(mlp: Any, form: Form, config: Any) -> bool:
    import torch  # here, because torch-free commands load this module

    weight = getattr(mlp, form.read[0]).weight
    x = torch.randn(1, 3, config.hidden_size, generator=torch.Generator().manual_seed(0)).to(weight)
    twin = copy.copy(mlp)
    twin.__class__ = intervention_class(type(mlp), form)
    twin.unskill_install(config)
    with torch.no_grad():
        return torch.equal(mlp(x), twin(x))


def intervention_class(mlp: type, form: Form) -> Any:
    """A family's MLP class with the runtime's mixin of this form, as the modeling file has it."""
    from custom_modeling import mlps  # for its torch, likewise

    names = {"unskill_read": form.read, "unskill_act": form.act, "unskill_down": form.down}
    return type(mlp.__name__, (getattr(mlps, form.mixin), mlp), names)
