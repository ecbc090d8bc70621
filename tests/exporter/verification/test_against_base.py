"""`unskill verify`: what a checkpoint shares with its base, by the files of the base that it keeps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.corruptions import remake_hashes
from tests.damage import config, edit, set_
from tests.damage_tokenizer import change_template, swap_tokens, tokenizer, tokenizer_config
from tests.exporter.verification.checking import checks, results
from tests.tiny import export_base, tiny_model


@pytest.mark.parametrize(
    ("damage", "check", "says"),
    [
        (
            config(set_(rms_norm_eps=0.1)),
            ("config.json", "config against base"),
            "config.json: rms_norm_eps is not the base's",
        ),
        (config(set_(torch_dtype="float16")), ("config.json", "config against base"), "torch_dtype is not the base's"),
        (
            config(set_(name_or_path="x")),
            ("config.json", "config against base"),
            "has name_or_path, which the base does not have",
        ),
        (lambda folder: edit(folder / "generation_config.json", set_(top_k=3)), "config against base", "top_k"),
        (tokenizer(swap_tokens), "tokenizer against base", "differently from MODEL's"),
        (change_template, "tokenizer against base", "chat template renders differently"),
        (
            tokenizer_config(set_(truncation_side="left")),
            "tokenizer against base",
            "truncation_side is not the base's",
        ),
    ],
)
def test_against_the_base(
    damage: Callable[[Path], Any], check: str | tuple[str, str], says: str, copied: Path
) -> None:
    damage(copied)
    remake_hashes(copied)
    found = checks(copied, model=False)
    # config.json is held against what was exported, too.
    fail = [check] if isinstance(check, str) else [*check]
    assert [name for name, each in found.items() if each["ok"] is False] == fail
    assert says in found[fail[-1]]["detail"]


def test_a_base_that_is_not_kept(copied: Path) -> None:
    shutil.rmtree(copied / "reproduce" / "base")
    remake_hashes(copied)
    found = checks(copied, model=False)
    for name in ("config against base", "tokenizer against base"):
        assert found[name]["ok"] is None and "does not keep its base's" in found[name]["detail"]
    assert False not in {check["ok"] for check in found.values()}


def test_a_base_with_paths_and_a_template_of_them(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    template = "{# in /home/user #}work in /root/x" + (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").write_text(template)
    edit(base / "config.json", set_(trained={"log": "/home/ada/log", "cache_dir": "./cache"}, seen="/home/ada/x"))
    edit(base / "generation_config.json", set_(made="/home/ada/make.py"))
    edit(base / "tokenizer_config.json", set_(chat_template=template))
    checkpoint = export_base(tmp_path, base, layer=1, alpha=5.0).checkpoint
    assert False not in results(checkpoint, model=False).values()
    written = json.loads((checkpoint / "config.json").read_text())
    assert written["trained"] == {"log": "", "cache_dir": ""} and written["seen"] == ""
    assert "work in /root/x" in (checkpoint / "tokenizer_config.json").read_text()
    assert not [path for path in checkpoint.rglob("*") if path.is_file() and b"/home/ada" in path.read_bytes()]
