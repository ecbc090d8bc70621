"""config.json: nothing of the base's is lost, and every release of transformers reads the same model out of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM

from exporter.checkpoint.config import checkpoint_config, legacy_keys, without_paths
from tests.test_matrix import RELEASES, interpreter

SMALL: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
PATTERN = ["sliding_attention", "sliding_attention", "full_attention"] * 2 + ["sliding_attention"] * 2


def rope(theta: float, rope_type: str = "default", **scaling: float) -> dict[str, Any]:
    return {"rope_theta": theta, "rope_type": rope_type, **scaling}


# Name: model_type, its own settings in the form of 5.x, and the first of the tested releases that reads it.
VARIANTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {"rope_parameters": rope(1.5e5)}, "4.48"),
    "llama-3": ("llama", {"rope_parameters": rope(5e5, "llama3", **LLAMA3)}, "4.48"),
    "llama-linear": ("llama", {"rope_parameters": rope(2e4, "linear", factor=4.0)}, "4.48"),
    "llama-tied": ("llama", {"rope_parameters": rope(1.5e5), "tie_word_embeddings": True}, "4.48"),
    "mistral": ("mistral", {"rope_parameters": rope(1e6), "sliding_window": 16}, "4.48"),
    "qwen2": ("qwen2", {"rope_parameters": rope(1e6), "tie_word_embeddings": True}, "4.48"),
    # 4.48 reads original_max_position_embeddings off max_position_embeddings: as Qwen2.5 writes it, they are the same.
    "qwen2-yarn": (
        "qwen2",
        {"rope_parameters": rope(1e6, "yarn", factor=4.0, original_max_position_embeddings=256)},
        "4.48",
    ),
    "qwen3": ("qwen3", {"rope_parameters": rope(1e6), "head_dim": 8}, "4.57"),
    "gemma": ("gemma", {"rope_parameters": rope(3e4), "head_dim": 8}, "4.48"),
    "gemma2": ("gemma2", {"rope_parameters": rope(3e4), "head_dim": 8, "sliding_window": 16}, "4.48"),
    "gemma3": (
        "gemma3_text",
        {
            "rope_parameters": {"full_attention": rope(5e5), "sliding_attention": rope(2e4)},
            "head_dim": 8,
            "sliding_window": 16,
        },
        "4.57",
    ),
    "gemma3-4b": (
        "gemma3_text",
        {
            "rope_parameters": {"full_attention": rope(5e5, "linear", factor=8.0), "sliding_attention": rope(2e4)},
            "head_dim": 8,
            "sliding_window": 16,
            "layer_types": PATTERN,
        },
        "4.57",
    ),
    "olmo": ("olmo", {"rope_parameters": rope(3e4)}, "4.48"),
    "olmo2": ("olmo2", {"rope_parameters": rope(5e5)}, "4.48"),
    "olmo3": (
        "olmo3",
        {"rope_parameters": {"full_attention": rope(5e5), "sliding_attention": rope(5e5)}, "sliding_window": 16},
        "4.57",
    ),
    "granite": ("granite", {"rope_parameters": rope(1e7), "residual_multiplier": 0.3, "logits_scaling": 2.0}, "4.48"),
    "smollm3": ("smollm3", {"rope_parameters": rope(5e6)}, "4.57"),
    "cohere": ("cohere", {"rope_parameters": rope(8e6)}, "4.48"),
    "cohere2": (
        "cohere2",
        {
            "rope_parameters": rope(5e4),
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 4,
        },
        "4.48",
    ),
    "exaone4": ("exaone4", {"rope_parameters": rope(1e6, "llama3", **LLAMA3), "sliding_window": 16}, "4.57"),
    "helium": ("helium", {"rope_parameters": rope(1e5), "head_dim": 8}, "4.57"),
    "seed_oss": ("seed_oss", {"rope_parameters": rope(1e7), "head_dim": 8}, "4.57"),
    "ministral": ("ministral", {"rope_parameters": rope(1e6), "head_dim": 8, "sliding_window": 16}, "4.57"),
}
LOGITS = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
ids = torch.arange(200).remainder(157).add(3).view(2, 100)
logits = {}
for folder in map(Path, sys.argv[2:]):
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto", attn_implementation="eager").eval()
    with torch.no_grad():
        logits[folder.name] = model(ids).logits
torch.save(logits, sys.argv[1])
"""


def base_config(name: str) -> dict[str, Any]:
    """config.json of a variant, as the installed 5.x writes it."""
    model_type, own, _ = VARIANTS[name]
    config = AutoConfig.for_model(model_type, **SMALL, **own, dtype="float32")
    written: dict[str, Any] = json.loads(config.to_json_string())
    assert "rope_parameters" in written
    assert "rope_theta" not in written
    return written


def export_config(base: dict[str, Any]) -> dict[str, Any]:
    return checkpoint_config(
        base,
        model_type="unskill_llama",
        class_names={key: f"UnskillLlama{key}" for key in ("config", "model", "causal_lm")},
        module="modeling_unskill_llama",
        vocab_size=161,
    )


# --- checkpoint_config


def test_a_base_of_the_4x_form_keeps_every_key_and_gets_ours() -> None:
    base = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 160,
        "rope_theta": 5e5,
        "rope_scaling": {"rope_type": "llama3", **LLAMA3},
        "torch_dtype": "bfloat16",
        "some_new_key": [1, {"a": None}],
    }
    assert export_config(base) == {
        **base,
        "model_type": "unskill_llama",
        "architectures": ["UnskillLlamacausal_lm"],
        "auto_map": {
            "AutoConfig": "modeling_unskill_llama.UnskillLlamaconfig",
            "AutoModel": "modeling_unskill_llama.UnskillLlamamodel",
            "AutoModelForCausalLM": "modeling_unskill_llama.UnskillLlamacausal_lm",
        },
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": 161,
    }
    assert base["model_type"] == "llama"


def test_a_base_of_the_5x_form_gets_the_keys_of_4x_beside_it() -> None:
    written = export_config(base_config("llama-3"))
    assert written["rope_parameters"] == {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}
    assert written["rope_theta"] == 5e5
    assert written["rope_scaling"] == {"rope_type": "llama3", **LLAMA3}
    assert (written["dtype"], written["torch_dtype"]) == ("float32", "float32")


def test_gemma3_gets_its_local_frequency_and_its_period() -> None:
    keys = legacy_keys(base_config("gemma3-4b"))
    assert keys == {
        "torch_dtype": "float32",
        "rope_theta": 5e5,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_local_base_freq": 2e4,
        "sliding_window_pattern": 3,
    }
    assert legacy_keys(base_config("gemma3"))["rope_scaling"] is None


@pytest.mark.parametrize(
    ("layers", "private", "period"),
    [("sssfss", None, 4), ("sf", None, 2), ("ffff", None, 1), ("sss", 6, 6), ("sss", None, 4), ("sfss", None, None)],
)
def test_the_period_is_read_off_the_layers(layers: str, private: int | None, period: int | None) -> None:
    kinds = {"s": "sliding_attention", "f": "full_attention"}
    config: dict[str, Any] = {"model_type": "cohere2", "layer_types": [kinds[layer] for layer in layers]}
    if private:
        config["_sliding_window_pattern"] = private
    assert legacy_keys(config).get("sliding_window_pattern") == period


def test_keys_the_base_has_win_over_ours() -> None:
    base = {**base_config("llama"), "rope_theta": 7.0, "torch_dtype": "float16"}
    written = export_config(base)
    assert (written["rope_theta"], written["torch_dtype"]) == (7.0, "float16")


def test_paths_do_not_come_along() -> None:
    left_behind = {
        "_name_or_path": "/home/somebody/llama",
        "_model_name_or_path": "/x",
        "_commit_hash": "abc",
        "tokenizer_path": "/x",
        "cache_dir": "/x",
    }
    assert export_config({**base_config("llama"), **left_behind}) == export_config(base_config("llama"))
    generation = {"eos_token_id": [1, 2], "transformers_version": "4.40.0", **left_behind}
    assert without_paths(generation) == {"eos_token_id": [1, 2], "transformers_version": "4.40.0"}


# --- what transformers reads out of it


@pytest.mark.parametrize("name", VARIANTS)
def test_the_keys_of_4x_say_what_those_of_5x_say(name: str, tmp_path: Path) -> None:
    """5.x reads both forms: from the 4.x keys alone, and from both, it gets the config it wrote."""
    base = base_config(name)
    both = {**legacy_keys(base), **base}
    old = {key: value for key, value in both.items() if key not in ("rope_parameters", "dtype")}
    configs = []
    for form, content in {"new": base, "both": both, "old": old}.items():
        (tmp_path / form).mkdir()
        (tmp_path / form / "config.json").write_text(json.dumps(content))
        config = AutoConfig.from_pretrained(tmp_path / form)
        configs.append((config.rope_parameters, config.dtype, getattr(config, "layer_types", None)))
    assert configs[0] == configs[1] == configs[2]


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES)
def test_every_release_computes_the_same_logits(release: str, tmp_path: Path) -> None:
    python = interpreter(release)
    names = [name for name, (_, _, first) in VARIANTS.items() if Version(first) <= Version(release)]
    for name in names:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**base_config(name)))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        model.save_pretrained(tmp_path / name)
    folders = [str(tmp_path / name) for name in names]
    expected = run_logits(Path(sys.executable), tmp_path / "expected.pt", folders)
    for name in names:
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**legacy_keys(config), **config}))
    found = run_logits(python, tmp_path / "found.pt", folders)
    apart = {name: (expected[name] - found[name]).abs().max().item() / expected[name].abs().max() for name in names}
    assert {name: value for name, value in apart.items() if value > 1e-4} == {}


def run_logits(python: Path, out: Path, folders: list[str]) -> dict[str, torch.Tensor]:
    """Logits of the models as one process of that Python computes them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(python), "-c", LOGITS, str(out), *folders], check=True, env=environment, capture_output=True)
    loaded: dict[str, torch.Tensor] = torch.load(out)
    return loaded
