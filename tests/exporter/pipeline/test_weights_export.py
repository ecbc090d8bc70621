"""Bases in odd forms that transformers loads; `tests/odd_inputs` exports each, and compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from exporter.models.files import INDEX
from exporter.pipeline.run import export
from tests.exporter.models.test_weights import EMBED, Change, cast, config, more, renamed
from tests.tiny import ALPHA, FORGET, LAYER, RETAIN, edit_json, one_skill, one_thread, tiny_model, write_prompts

SHARDS = {"shard_size": "60KB"}
TIED = {"tie_word_embeddings": True}
NO_THETA = ("rope_theta", "rope_scaling", "rope_local_base_freq")


def rope(**values: Any) -> Change:
    """What leaves nothing of RoPE in config.json but these keys."""
    return lambda base: edit_json(
        base / "config.json",
        lambda own: {key: value for key, value in own.items() if key not in (*NO_THETA, "rope_parameters")} | values,
    )


def index(**changes: str | None) -> Change:
    """What gives tensors another file in the index, or takes them out; double underscores are dots."""
    given = {name.replace("__", "."): file for name, file in changes.items()}

    def edited(written: dict[str, Any]) -> dict[str, Any]:
        files = sorted(set(written["weight_map"].values()))
        named = written["weight_map"] | {name: file and files[0] for name, file in given.items()}
        return {**written, "weight_map": {name: file for name, file in named.items() if file is not None}}

    return lambda base: edit_json(base / INDEX, edited)


def left_over(base: Path) -> None:
    save_file({"model.norm.weight": torch.zeros(32)}, base / "model-00009-of-00009.safetensors")


FORMS: dict[str, tuple[dict[str, Any], Change]] = {
    "tied, as the head": (TIED, renamed(lambda name: "lm_head.weight" if name == EMBED else name)),
    "tied, under both names": (TIED, more(lm_head__weight=lambda own: own[EMBED])),
    "surplus": ({}, more(v_head__weight=lambda own: torch.zeros(1, 32), lm_head__bias=lambda own: torch.ones(9))),
    "fewer layers by config": ({}, config(num_hidden_layers=2)),
    "shard left over": (SHARDS, left_over),
    "index with gaps": (SHARDS, index(model__norm__weight=None, model__ghost__weight="first")),
    "index with another file": (SHARDS, index(model__norm__weight="first")),
    "fp8 without scales": ({}, cast(torch.float8_e4m3fn, "mlp")),
    "float64 in part": ({}, cast(torch.float64, "mlp")),
    "float16 beside float32": ({}, cast(torch.float16, "model")),
    "no architectures": ({}, config(architectures=None)),
    "rope: type alone": ({}, rope(rope_parameters={"rope_type": "default"})),
    "rope: no theta, scaled": ({}, rope(rope_parameters={"rope_type": "linear", "factor": 2.0})),
    "rope: theta beside": ({}, rope(rope_parameters={"rope_type": "default"}, rope_theta=77.0)),
    "rope: empty": ({}, rope(rope_parameters={})),
    "rope: nothing": ({}, rope()),
    "rope: old form, no theta": ({}, rope(rope_scaling={"type": "linear", "factor": 2.0})),
    "rope: two kinds": (
        {"model_type": "gemma3_text"},
        rope(rope_parameters={"full_attention": {"rope_type": "default"}, "sliding_attention": None}),
    ),
    "rope: one kind for two": ({"model_type": "gemma3_text"}, rope(rope_parameters={"rope_type": "default"})),
}


def exported(base: Path, model_type: str = "llama") -> Path:
    """Its checkpoint, of forget and retain prompts as `tests.tiny` has them."""
    sources = [write_prompts(base.parent / name, each) for name, each in (("f.jsonl", FORGET), ("r.jsonl", RETAIN))]
    about: dict[str, Any] = {"prompt_template": "{prompt}", "everyday": False, "force": True, "quiet": True}
    with one_thread():
        layer = LAYER.get(model_type, 0)
        export(one_skill(base, base.parent / "out", *sources, **about, layer=layer, alpha=ALPHA), lambda text: None)
    return base.parent / "out"


@pytest.mark.parametrize(("given", "theta"), [({}, 10000.0), ({"rope_theta": 77.0}, 77.0)])
def test_a_theta_that_rests_on_a_default_is_written_for_old_releases(
    given: dict[str, float], theta: float, tmp_path: Path
) -> None:
    base = tiny_model(tmp_path / "base", chat=False)
    rope(rope_parameters={"rope_type": "default"}, **given)(base)
    written = json.loads((exported(base) / "config.json").read_text())
    assert written["rope_theta"] == theta and written["rope_scaling"] is None
    assert written["rope_parameters"] == {"rope_type": "default"}
