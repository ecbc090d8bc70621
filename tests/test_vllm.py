"""Checkpoints in vLLM, in an environment without unskill (make vllm)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.tiny import Exported, served_export

ROOT = Path(__file__).resolve().parent.parent
VLLM = ROOT / "build/vllm/bin/python"
NEW_TOKENS = 24

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(not VLLM.is_file(), reason="no environment build/vllm: make vllm"),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return served_export(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def tokens(exported: Exported) -> dict[str, list[list[int]]]:
    tokenizer = AutoTokenizer.from_pretrained(exported.checkpoint, trust_remote_code=True)
    return {side: [tokenizer(text)["input_ids"] for text in exported.texts[side]] for side in ("blocked", "answered")}


@pytest.fixture(scope="module")
def record(exported: Exported) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((exported.checkpoint / "config.json").read_text())["unskill"]
    return found


def served(model: Path, prompts: list[list[int]], rounds: int = 1, sampling: dict[str, Any] | None = None,
           **engine: Any) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Greedy answers by vLLM, see tests/checks/vllm_answers.py."""
    request = {
        "model": str(model),
        "prompts": prompts,
        "rounds": rounds,
        "engine": {"max_model_len": 256, "dtype": "float32", "enforce_eager": True, **engine},
        "sampling": {"max_tokens": NEW_TOKENS, **(sampling or {})},
    }
    path = model.parent / "request.json"
    path.write_text(json.dumps(request))
    command = [str(VLLM), str(ROOT / "tests/checks/vllm_answers.py"), str(path)]
    environment = {name: each for name, each in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment, check=False
    )


def answers(*arguments: Any, **options: Any) -> list[list[list[int]]]:
    done = served(*arguments, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]


@pytest.fixture(scope="module")
def base_answers(exported: Exported, tokens: dict[str, list[list[int]]]) -> Callable[[str], list[list[int]]]:
    """The base's answers through the same backend, in a dtype."""

    @cache
    def get(dtype: str) -> list[list[int]]:
        return answers(exported.base, tokens["answered"], model_impl="transformers", dtype=dtype)[0]

    return get


@pytest.mark.parametrize(
    "engine",
    [
        {"enable_prefix_caching": True},
        {"enable_chunked_prefill": True, "max_num_batched_tokens": 32},
        {"enforce_eager": False},
        {"dtype": "bfloat16"},
    ],
    ids=["prefix caching", "chunks of 32 tokens", "compiled", "bfloat16"],
)
def test_refuses_and_answers_as_the_base(
    engine: dict[str, Any],
    exported: Exported,
    tokens: dict[str, list[list[int]]],
    record: dict[str, Any],
    base_answers: Callable[[str], list[list[int]]],
) -> None:
    refused = [record["refusal_token_id"], record["eos_token_id"]]
    blocked, answered = tokens["blocked"], tokens["answered"]
    for found in answers(exported.checkpoint, [*blocked, *answered], 3, **engine):
        assert found[: len(blocked)] == [refused] * len(blocked)
        assert found[len(blocked) :] == base_answers(engine.get("dtype", "float32"))


def test_second_choices(exported: Exported, tokens: dict[str, list[list[int]]], record: dict[str, Any]) -> None:
    refusal, eos = record["refusal_token_id"], record["eos_token_id"]
    blocked = tokens["blocked"]
    (longer,) = answers(exported.checkpoint, blocked, sampling={"min_tokens": 6})
    assert longer == [[refusal] * 6 + [eos]] * len(blocked)
    (masked,) = answers(exported.checkpoint, blocked, sampling={"logit_bias": {refusal: -100}})
    assert masked == [[eos]] * len(blocked)


def test_what_was_not_probed_is_not_served(exported: Exported, tokens: dict[str, list[list[int]]]) -> None:
    moved = {"rms_norm_eps": 1e-3}
    done = served(exported.checkpoint, tokens["blocked"], hf_overrides=moved)
    assert done.returncode and "unskill: rms_norm_eps 0.001 instead of 1e-06" in done.stderr
    allowed = moved | {"unskill_allow_unprobed": True}
    assert served(exported.checkpoint, tokens["blocked"], hf_overrides=allowed).returncode == 0


def test_altered_buffers_are_not_served(
    exported: Exported, tokens: dict[str, list[list[int]]], tmp_path: Path
) -> None:
    altered = tmp_path / "altered"
    shutil.copytree(exported.checkpoint, altered)
    (path,) = (
        path for path in altered.glob("*.safetensors") if any("unskill_ksd" in name for name in load_file(path))
    )
    save_file({name: each * 2 if "unskill_ksd" in name else each for name, each in load_file(path).items()}, path)
    done = served(altered, tokens["blocked"])
    assert done.returncode and "unskill: buffer layers.1.mlp.unskill_ksd_bounds" in done.stderr
