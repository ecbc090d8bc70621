"""The live model: where it is put, how it is asked, and what is said where transformers can make none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from exporter.common.errors import BadInput, RunFailed
from exporter.models.files import find_base
from exporter.models.loading import FUNCTIONS, load, load_files, make_first_calls
from exporter.prompts.formats import Formatter
from tests.damage import edit, set_
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("loading") / "base")


def test_a_device_is_reached_without_accelerate(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' device_map wants accelerate, which a plain install does not have."""
    given: list[dict[str, Any]] = []
    devices: list[str] = []
    from_pretrained = AutoModelForCausalLM.from_pretrained

    def spied(*arguments: Any, **named: Any) -> Any:
        given.append(named)
        model = from_pretrained(*arguments, **named)
        monkeypatch.setattr(type(model), "to", lambda self, device: devices.append(device) or self)
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spied)
    monkeypatch.setattr("exporter.models.loading.check_device", lambda device: None)
    monkeypatch.setattr("transformers.utils.import_utils.is_accelerate_available", lambda *_: False)
    load(find_base(str(base)), "auto", "cuda:1")
    assert devices == ["cuda:1"]
    assert not given[0].keys() & {"device_map", "tp_plan", "device"}


def test_the_recorded_template_unless_another_is_given(base: Path) -> None:
    plain = load_files(find_base(str(base)), "auto", "cpu")
    skills = [{"name": "a", "method": "na"}, {"name": "b", "method": "ksd", "prompt_template": "Q: {prompt}\nA:"}]
    edited = replace(plain, files=replace(plain.files, config={"unskill": {"skills": skills}}))

    def asked(formatter: Formatter) -> str:
        return formatter.render_text("Hello")

    assert asked(edited.formatter()) == "Q: Hello\nA:"
    assert asked(edited.formatter("{prompt}!")) == "Hello!"
    assert asked(plain.formatter()) == asked(Formatter(plain.tokenizer))
    assert asked(plain.formatter(edited.template)) == "Q: Hello\nA:"


@pytest.mark.parametrize(
    ("factor", "kind", "said"),
    [
        (1e6, BadInput, "weight model.norm.weight holds NaN or infinity in float16; try"),
        (6e4, RunFailed, "activations are NaN or infinite in"),
    ],
)
def test_what_float16_cannot_hold_is_found_at_load(
    factor: float, kind: type[Exception], said: str, tmp_path: Path
) -> None:
    base = tiny_model(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = factor * torch.ones_like(tensors["model.norm.weight"])
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    load(find_base(str(base)), "float32", "cpu")
    with pytest.raises(kind, match=said):
        load(find_base(str(base)), "float16", "cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": "16"},
        {"num_attention_heads": 3},
        {"layer_types": ["x"]},
    ],
    ids=str,
)
def test_unsound_sizes(changes: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    edit(base / "config.json", set_(**changes))
    with pytest.raises(BadInput, match="MODEL base does not load: "):
        load_files(find_base(str(base)), "auto", "cpu")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_out_of_memory_is_no_bad_input(error: Exception, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(RunFailed, match="MODEL base: out of memory while loading it to cpu"):
        load_files(find_base(str(base)), "auto", "cpu")


@pytest.mark.parametrize("kind", [AttributeError, TypeError])
def test_a_bug_keeps_its_traceback(kind: type[Exception], base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkpoint's code, say, where its config.json is sound."""

    def fail(*_: Any, **__: Any) -> None:
        raise kind("a bug")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(kind, match="a bug"):
        load_files(find_base(str(base)), "auto", "cpu")


def test_all_are_called_in_both_precisions_on_tensors_too_short_to_be_shared_out() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        make_first_calls()
    called = [event for event in profile.events() if event.name.removeprefix("aten::") in FUNCTIONS]
    assert {event.name.removeprefix("aten::") for event in called} == set(FUNCTIONS)
    assert all(event.input_shapes[0][0] < 2048 for event in called)  # the least that torch gives a second thread
    assert len(called) >= 2 * len(FUNCTIONS)
    assert {event.thread for event in called} == {called[0].thread}
