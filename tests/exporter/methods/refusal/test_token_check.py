"""check_tokenizer finds what an export must not do to a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from exporter.common.errors import RunFailed
from exporter.methods.refusal.token import check_tokenizer
from tests.exporter.methods.refusal.test_token import byte_level, export, read, save


def test_check_finds_a_text_that_encodes_to_r(tmp_path: Path) -> None:
    """With ignore_merges and no split at spaces, a text that is the vocabulary entry becomes it, merges or not."""
    tokenizer = byte_level(ignore_merges=True)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    with pytest.raises(RunFailed, match="encodes to the refusal"):
        export(save(tokenizer, tmp_path / "base"), tmp_path / "out")


def test_check_finds_shifted_ids_other_encodings_and_other_text(tmp_path: Path) -> None:
    folder, out = save(byte_level(), tmp_path / "base"), tmp_path / "out"
    base, _, token = export(folder, out)
    sound = read(out / "tokenizer.json")

    def spoil(change: Callable[[dict[str, Any]], Any], says: str) -> None:
        broken = json.loads(json.dumps(sound))
        change(broken)
        (out / "tokenizer.json").write_text(json.dumps(broken), encoding="utf-8")
        with pytest.raises(RunFailed, match=says):
            check_tokenizer(base, PreTrainedTokenizerFast.from_pretrained(out), token)

    spoil(lambda broken: broken["model"]["vocab"].pop("<think>"), "numbers its tokens")
    spoil(lambda broken: broken["model"]["merges"].pop(), "encodes a text differently")
    spoil(lambda broken: broken.update(decoder=None), "prints the refusal as")
    (out / "tokenizer.json").write_text(json.dumps(sound), encoding="utf-8")
    settings_ = read(out / "tokenizer_config.json")
    (out / "tokenizer_config.json").write_text(json.dumps({**settings_, "eos_token": "<pad>"}))
    with pytest.raises(RunFailed, match="eos_token_id"):
        check_tokenizer(base, PreTrainedTokenizerFast.from_pretrained(out), token)
