"""A base whose config.json leaves sizes to its class's defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig

from exporter.checkpoint.inspect import inspect
from exporter.models.files import find_base, size_in
from exporter.verification.run import VerifySettings, verify
from tests.tiny import edit_json, export_base, tiny_model

SIZES = ("vocab_size", "num_hidden_layers", "intermediate_size", "hidden_size")


def test_sizes_that_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Export, verify and inspect take them as the model does. The defaults are small here: real ones are billions."""
    base = tiny_model(tmp_path / "base", chat=False)
    sizes = {name: find_base(str(base)).config[name] for name in SIZES}
    for name, size in sizes.items():
        monkeypatch.setattr(LlamaConfig, name, size)
        # What classes that extend it, as the checkpoint's does, get their own __init__ from.
        monkeypatch.setattr(LlamaConfig.__dataclass_fields__[name], "default", size)
    original = LlamaConfig.__init__

    def small(self: LlamaConfig, **named: object) -> None:
        original(self, **{**sizes, **named})

    monkeypatch.setattr(LlamaConfig, "__init__", small)
    edit_json(base / "config.json", lambda config: {key: config[key] for key in config.keys() - sizes.keys()})
    config = find_base(str(base)).config
    assert not config.keys() & sizes.keys()
    assert {name: size_in(config, name) for name in SIZES} == sizes
    exported = export_base(tmp_path, base, layer=1, alpha=5.0)
    report = verify(VerifySettings(str(exported.checkpoint)), lambda text: None)
    assert report["ok"], [check for check in report["checks"] if check["ok"] is False]
    assert inspect(str(exported.checkpoint))["neurons"]["of"] == 3 * sizes["intermediate_size"]
