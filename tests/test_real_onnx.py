"""A real checkpoint as ONNX: what it refuses and what it answers are the checkpoint's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import Exported

pytestmark = [pytest.mark.real, pytest.mark.slow]

NEW_TOKENS = 16


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_refuses_and_answers_as_the_checkpoint_does(dtype: str, real_export: Exported, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from exporter.onnx.check.runners import Session
    from exporter.onnx.settings import GRAPH, OnnxSettings
    from exporter.onnx.writing import write_onnx

    out = tmp_path / "onnx"
    forget = f"{real_export.checkpoint.parent / 'forget.jsonl'},column=prompt"
    summary = write_onnx(OnnxSettings(str(real_export.checkpoint), out, (forget,), dtype=dtype), lambda text: None)
    assert summary["agrees"] is True
    # 272 MB of halves, and no second copy of the embedding that is the head too.
    assert summary["bytes"] < (600e6 if dtype == "float32" else 310e6)
    held_out = json.loads((real_export.checkpoint.parent / "held_out.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(out)
    session = Session(out / GRAPH[dtype])
    refusal = json.loads((out / "config.json").read_text())["unskill"]["refusal_token_id"]

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    refused = {
        text: int(session.forward(np.array([ids_of(text)]))[0][0, -1].argmax()) == refusal
        for text in held_out["problems"]
    }
    # A key within rounding of a face of the hypercube may fall on either side; in float16 rounding is coarser.
    apart = [text for text, found in refused.items() if found != held_out["problems"][text]]
    assert len(apart) <= (0 if dtype == "float32" else 2), apart
    if dtype == "float16":
        return
    model = AutoModelForCausalLM.from_pretrained(real_export.checkpoint, trust_remote_code=True)
    for text in held_out["others"][:12]:
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        expected = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0].tolist()
        found, cache, given = ids_of(text), None, ids_of(text)
        while len(found) < len(expected):
            logits, cache = session.forward(np.array([given]), None, cache)
            given = [int(logits[0, -1].argmax())]
            found += given
        assert found == expected, text
