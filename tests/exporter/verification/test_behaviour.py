"""The checks of what a model does can fail: each on a model that does something else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.verification import behaviour
from exporter.verification.checks import Wrong
from exporter.verification.live import Live, plain_classes
from exporter.verification.view import View
from tests.tiny import Exported


@pytest.fixture
def live(whole: Path) -> Live:
    return Live.load(View.of(str(whole)), "float32")


@pytest.fixture
def ksd(tiny: Callable[..., Exported]) -> Live:
    return Live.load(View.of(str(tiny("llama").checkpoint)), "float32")


def runtime(live: Live) -> Any:
    return sys.modules[type(live.model).__module__]


def test_scores_of_another_model(live: Live) -> None:
    assert behaviour.check_scores(live).startswith("54 of 54")
    with torch.no_grad():
        live.model.model.layers[0].mlp.up_proj.weight[3, 5] += 1.0
    with pytest.raises(Wrong, match="scores of everyday prompts are not those of the export"):
        behaviour.check_scores(live)


def test_prompts_in_other_tokens(live: Live) -> None:
    live.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(Wrong, match="tokens, at the export"):
        behaviour.check_scores(live)


def test_everything_refused(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = lambda key, bounds: torch.ones(key.shape[:-1], dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr(runtime(live), "inside_hypercubes", everything)
    with pytest.raises(Wrong, match="is refused, which it was not at the export"):
        behaviour.check_answered(live)


def test_nothing_refused(ksd: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "opened in memory" in behaviour.check_refused(ksd, None)
    nothing = lambda key, bounds: torch.zeros(key.shape[:-1], dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr(runtime(ksd), "inside_hypercubes", nothing)
    with pytest.raises(Wrong, match="not the refusal and EOS"):
        behaviour.check_refused(ksd, None)


def test_another_message(ksd: Live) -> None:
    ksd.record["refusal"] = "Something else"
    with pytest.raises(Wrong, match="the refusal prints"):
        behaviour.check_refused(ksd, None)


def test_logits_off_by_a_bit(ksd: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "bit by bit" in behaviour.check_identity(ksd)
    rewrite = runtime(ksd).rewrite_logits
    monkeypatch.setattr(
        runtime(ksd), "rewrite_logits", lambda logits, *others: rewrite(logits * (1 + 2**-23), *others)
    )
    with pytest.raises(Wrong, match="logits differ by up to"):
        behaviour.check_identity(ksd)


@pytest.mark.parametrize(("method", "kind"), [("na", "adjusted"), ("sp", "pruned"), ("na+ksd", "adjusted")])
def test_neurons_that_are_not_in_use(method: str, kind: str, tiny: Callable[..., Exported]) -> None:
    live = Live.load(View.of(str(tiny("llama", method).checkpoint)), "float32")
    assert f"{kind} neurons: logits differ at" in behaviour.check_neurons(live)
    for layer in live.model.model.layers:
        if hasattr(layer.mlp, f"unskill_{kind}"):
            setattr(layer.mlp, f"unskill_{kind}", 0)
    live.model.model.unskill_layers["adjusted"] = ()
    with pytest.raises(Wrong, match="logits"):
        behaviour.check_neurons(live)


def test_the_model_is_as_before(live: Live) -> None:
    """After all checks, and while its classes are the family's own, nothing of it has changed."""
    ids = live.some[0].ids
    before, classes = live.logits(ids), [type(module) for module in live.model.modules()]
    with plain_classes(live):
        assert type(live.model).__name__ == "LlamaForCausalLM" and live.logits(ids).shape[1] == before.shape[1] - 1
    behaviour.check_neurons(live)
    behaviour.check_refused(live, None)
    behaviour.check_scores(live)
    assert torch.equal(live.logits(ids), before) and [type(module) for module in live.model.modules()] == classes
