"""The checks of what a model does can fail: each on a model that does something else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from custom_modeling.buffers import KSD_BOUNDS
from exporter.checkpoint.given_prompts import Given
from exporter.methods.key_space.hypercubes import opened_bounds
from exporter.pipeline.run import export
from exporter.prompts import packaged
from exporter.recipes.recipe import merged_settings
from exporter.verification import behaviour
from exporter.verification.checks import NotMade, Wrong
from exporter.verification.in_memory import InMemory, filled
from exporter.verification.on_disk import OnDisk
from tests.damage import edit, set_
from tests.tiny import FORGET, FORGET_MORE, RETAIN, Exported, tiny_model, write_prompts


@pytest.fixture
def live(whole: Path) -> InMemory:
    return InMemory.load(OnDisk.of(str(whole)), "float32")


@pytest.fixture
def ksd(tiny: Callable[..., Exported]) -> InMemory:
    return InMemory.load(OnDisk.of(str(tiny("llama").checkpoint)), "float32")


def runtime(live: InMemory) -> Any:
    return sys.modules[type(live.loaded.model).__module__]


def test_scores_of_another_model(live: InMemory) -> None:
    assert behaviour.check_scores(live).startswith("54 of 54")
    with torch.no_grad():
        live.loaded.model.model.layers[0].mlp.up_proj.weight[3, 5] += 1.0
    with pytest.raises(Wrong, match="scores of everyday prompts are not those of the export"):
        behaviour.check_scores(live)


def test_prompts_in_other_tokens(live: InMemory) -> None:
    live.loaded.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(Wrong, match="tokens, at the export"):
        behaviour.check_scores(live)


def test_other_texts_around_prompts(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another version of unskill they may be others; of this one they may not."""
    edit(copied / "reproduce" / "versions.json", set_(**{"packaged exchanges.jsonl": "0"}))
    live = InMemory.load(OnDisk.of(str(copied)), "float32")
    longer = tuple(f"{text} {text}" for text in packaged.system_prompts())
    monkeypatch.setattr("exporter.prompts.packaged.system_prompts", lambda: longer)
    with pytest.raises(Wrong, match=r"everyday prompt \d+ has \d+ tokens, at the export"):
        behaviour.check_scores(live)
    live.record["version"] = "0.0.9"
    with pytest.raises(NotMade, match="other system prompts and exchanges"):
        behaviour.check_scores(live)


def test_random_draws_are_not_compared(live: InMemory) -> None:
    live.record["compat"] = "official"
    refused = partial(behaviour.check_refused, given=Given({}))
    for check in (behaviour.check_scores, behaviour.check_answered, refused):
        with pytest.raises(NotMade, match="draws at random"):
            check(live)


def test_settings_of_generation_that_the_base_brings(ksd: InMemory) -> None:
    """They would forbid the end of a refusal; what was measured under them is asked under them."""
    ids, ends = ksd.some[0].ids, ksd.record["eos_token_id"]
    ksd.loaded.model.generation_config.min_new_tokens = 4
    assert "opened in memory" in behaviour.check_refused(ksd, None)
    with filled(ksd, KSD_BOUNDS, opened_bounds):
        assert ksd.answer(ids, 8)[1:] == [ends] and ksd.answer(ids, 8, as_exported=True)[1] != ends


def test_everything_refused(live: InMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = lambda key, bounds: torch.ones(key.shape[:-1], dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr(runtime(live), "inside_hypercubes", everything)
    with pytest.raises(Wrong, match="is refused, which it was not at the export"):
        behaviour.check_answered(live)


def test_nothing_refused(ksd: InMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "opened in memory" in behaviour.check_refused(ksd, None)
    nothing = lambda key, bounds: torch.zeros(key.shape[:-1], dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr(runtime(ksd), "inside_hypercubes", nothing)
    with pytest.raises(Wrong, match="not the refusal and EOS"):
        behaviour.check_refused(ksd, None)


def test_another_message(ksd: InMemory) -> None:
    ksd.record["refusal"] = "Something else"
    with pytest.raises(Wrong, match="the refusal prints"):
        behaviour.check_refused(ksd, None)


def test_logits_off_by_a_bit(ksd: InMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "bit by bit" in behaviour.check_identity(ksd)
    rewrite = runtime(ksd).rewrite_logits
    monkeypatch.setattr(
        runtime(ksd), "rewrite_logits", lambda logits, *others: rewrite(logits * (1 + 2**-23), *others)
    )
    with pytest.raises(Wrong, match="logits differ by up to"):
        behaviour.check_identity(ksd)


@pytest.mark.parametrize(("method", "kind"), [("na", "adjusted"), ("sp", "pruned"), ("na+ksd", "adjusted")])
def test_neurons_that_are_not_in_use(method: str, kind: str, tiny: Callable[..., Exported]) -> None:
    live = InMemory.load(OnDisk.of(str(tiny("llama", method).checkpoint)), "float32")
    assert f"{kind} neurons: logits differ at" in behaviour.check_neurons(live)
    for layer in live.loaded.model.model.layers:
        if hasattr(layer.mlp, f"unskill_{kind}"):
            setattr(layer.mlp, f"unskill_{kind}", 0)
    live.loaded.model.model.unskill_layers["adjusted"] = ()
    with pytest.raises(Wrong, match="logits"):
        behaviour.check_neurons(live)


def test_pruning_that_does_nothing_beside_adjusted_neurons(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", chat=False)
    texts = {"forget": FORGET + FORGET_MORE, "retain": RETAIN}
    files = {name: f"{write_prompts(tmp_path / f'{name}.jsonl', each)},column=prompt" for name, each in texts.items()}
    common = {"forget": (files["forget"],), "retain": (files["retain"],), "everyday": False, "beta": 10.0}
    skills = [{"name": "one", "method": "na", "score": "effect-size"}, {"name": "other", "method": "sp"}]
    given = {"force": True, "quiet": True, "figures": False, "model": str(base), "out": tmp_path / "checkpoint"}
    given |= {"prompt_template": "{prompt}"}
    export(merged_settings({"skill": [{**each, **common} for each in skills]}, given), lambda text: None)
    live = InMemory.load(OnDisk.of(str(tmp_path / "checkpoint")), "float32")
    assert "adjusted neurons and" in behaviour.check_neurons(live)
    for layer in live.loaded.model.model.layers:
        layer.mlp.unskill_pruned = 0
    with pytest.raises(Wrong, match="without pruned neurons"):
        behaviour.check_neurons(live)


def test_the_model_is_as_before(live: InMemory) -> None:
    """After all checks, also those that run its weights in the family's own classes, nothing of it has changed."""
    ids = live.some[0].ids
    before, classes = live.logits(ids), [type(module) for module in live.loaded.model.modules()]
    plain = live.plain
    assert type(plain.loaded.model).__name__ == "LlamaForCausalLM"
    assert plain.logits(ids).shape[1] == before.shape[1] - 1
    behaviour.check_neurons(live)
    behaviour.check_refused(live, None)
    behaviour.check_scores(live)
    assert torch.equal(live.logits(ids), before)
    assert [type(module) for module in live.loaded.model.modules()] == classes
