"""config.json and generation_config.json of a checkpoint: the base's JSON with keys added.

The base's JSON is edited as JSON and never passed through a config class, which would write it back in the form of the
installed transformers. Where the base is in the form of transformers 5 (`rope_parameters`, `dtype`), the keys that 4.x
reads are added beside it: without them 4.x takes its default rope_theta and writes wrong text without a word.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from exporter.models.named_ids import EOS

# Keys that saving and training tools leave behind: where the model was on the user's disk.
PATH_KEYS = ("name_or_path", "_path", "_dir", "_file", "_commit_hash")
FULL, SLIDING = "full_attention", "sliding_attention"
# Families whose 4.x configs know which layers slide by a period ("every n-th layer sees everything").
PERIODIC_FAMILIES = ("cohere2", "gemma3_text")


def checkpoint_config(
    base: Mapping[str, Any],
    *,
    model_type: str,
    class_names: Mapping[str, str],
    module: str,
    vocab_size: int,
    mlx: str | None = None,
) -> dict[str, Any]:
    """The checkpoint's config.json without its unskill object.

    Args:
        base: The base's config.json, in the form of transformers 4 or 5.
        model_type: The checkpoint's own, `unskill_<base>`: with the base's, transformers would load the plain model.
        class_names: Names of the generated classes; keys "config", "model" and "causal_lm".
        module: Name of the generated modeling file, without `.py`.
        vocab_size: Rows of embedding and head, R included.
        mlx: Name of the generated file for MLX, if there is one.
    """
    auto_map = {
        "AutoConfig": f"{module}.{class_names['config']}",
        "AutoModel": f"{module}.{class_names['model']}",
        "AutoModelForCausalLM": f"{module}.{class_names['causal_lm']}",
    }
    return {
        **legacy_keys(base),
        **without_paths(base),
        "model_type": model_type,
        "architectures": [class_names["causal_lm"]],
        "auto_map": auto_map,
        # Without it pipeline() of transformers 4.48 loads no tokenizer beside a config class that is not its own.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": vocab_size,
        # mlx_lm runs this file; without it, it refuses the model_type.
        **({} if mlx is None else {"model_file": mlx}),
    }


def legacy_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys under which transformers 4.x looks for what 5.x writes as `dtype` and `rope_parameters`.

    Keys that `config` has already are to win over these. Empty for the 4.x form.
    """
    keys: dict[str, Any] = {}
    if "dtype" in config:
        keys["torch_dtype"] = config["dtype"]
    if config.get("model_type") == "qwen3_moe" and "num_local_experts" in config:
        keys["num_experts"] = config["num_local_experts"]  # releases before 5.23 know this name alone
    if config.get("model_type") in PERIODIC_FAMILIES and (period := _period(config)):
        keys["sliding_window_pattern"] = period
    if not config.get("rope_parameters"):
        return keys
    rope = rope_parameters(config)
    full = rope.get(FULL, rope)
    scaling = {key: value for key, value in full.items() if key not in ("rope_theta", "partial_rotary_factor")}
    keys["rope_theta"] = full["rope_theta"]
    keys["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    if "partial_rotary_factor" in full:
        keys["partial_rotary_factor"] = full["partial_rotary_factor"]
    if SLIDING in rope and config.get("model_type") == "gemma3_text":
        keys["rope_local_base_freq"] = rope[SLIDING]["rope_theta"]
    return keys


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a config.json of 5.x; where a rope_theta is left out, as transformers completes them."""
    rope: dict[str, Any] = config["rope_parameters"]
    nested = [rope[name] or {} for name in (FULL, SLIDING) if name in rope]
    if all("rope_theta" in each for each in nested or [rope]):
        return rope
    # Here, because it is rarely needed and torch-free commands load this module.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[config["model_type"]]
    complete: dict[str, Any] = config_class.from_dict(copy.deepcopy(dict(config))).rope_parameters
    return complete


def _period(config: Mapping[str, Any]) -> int | None:
    """Return n where every n-th layer, and no other, has full attention; None where the layers follow no such rule."""
    layers = config.get("layer_types") or []
    # Fewer layers than a period: none of them is full, and the config remembers the period in a private key.
    period = layers.index(FULL) + 1 if FULL in layers else config.get("_sliding_window_pattern", len(layers) + 1)
    expected = [SLIDING if (index + 1) % period else FULL for index in range(len(layers))]
    return period if layers and layers == expected else None


def checkpoint_generation(base: Mapping[str, Any], eos_id: int | None) -> dict[str, Any]:
    """The checkpoint's generation_config.json: the base's, and where that names no EOS, the one that ends a refusal.

    transformers would not take it from config.json, and the answer would go on after the refusal. eos_id: None where
    nothing is refused.
    """
    found = without_paths(base)
    return found | {EOS: eos_id} if eos_id is not None and found.get(EOS) is None else found


def without_paths(source: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object less what tools left behind.

    The `transformers_version` of a generation_config.json stays: 4.57 decides by it whether a caller's own
    GenerationConfig is completed from it.
    """
    return {key: value for key, value in source.items() if not (isinstance(value, str) and key.endswith(PATH_KEYS))}
