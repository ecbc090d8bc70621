"""Neuron Adjust on a loaded tiny model: the same answer however the tokens reach it, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from custom_modeling.mlps import InterventionMLP
from exporter.methods.neurons.applied import changed
from exporter.methods.neurons.scores import NeuronChanges, SelectedNeurons
from exporter.models.files import find_base
from exporter.models.loading import LoadedModel, load
from tests.tiny import RETAIN, one_thread, tiny_model

FAMILIES = ["llama", "gemma3_text", "qwen3", "cohere"]


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    base = tiny_model(tmp_path_factory.mktemp("base") / "tiny", request.param)
    return load(find_base(str(base)), "float32", "cpu")


def selection() -> NeuronChanges:
    """Many neurons, of whose values a good part looks forgotten."""
    generator = torch.Generator().manual_seed(1)
    chosen = {}
    for layer in (0, 2):
        index = torch.randperm(64, generator=generator)[:40].sort().values
        means = torch.randn(2, 40, generator=generator, dtype=torch.float64)
        deviations = torch.rand(2, 40, generator=generator, dtype=torch.float64) + 0.5
        params = torch.stack([means[0], deviations[0], means[1], deviations[1]])
        chosen[layer] = SelectedNeurons(index, params)
    return NeuronChanges(chosen)


def logits(loaded: LoadedModel, **inputs: Any) -> torch.Tensor:
    with torch.inference_mode():
        return loaded.model(**inputs).logits


def test_batched_alone_cached_and_padded_are_the_same(loaded: LoadedModel) -> None:
    ids = [loaded.tokenizer(text)["input_ids"][:length] for text, length in zip(RETAIN, (17, 30, 23), strict=False)]
    width = max(map(len, ids))
    batch = torch.tensor([[0] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with one_thread():
        before = [logits(loaded, input_ids=torch.tensor([row]))[0] for row in ids]
        with changed(loaded, selection(), seed=3):
            alone = [logits(loaded, input_ids=torch.tensor([row]))[0] for row in ids]
            again = logits(loaded, input_ids=torch.tensor([ids[0]]))[0]
            together = logits(loaded, input_ids=batch, attention_mask=mask, position_ids=positions)
            by_mask = logits(loaded, input_ids=batch, attention_mask=mask)
            stepped = []
            cache = None
            for token in ids[0]:
                with torch.inference_mode():
                    output = loaded.model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                stepped.append(output.logits[0, -1])
        with changed(loaded, selection(), seed=4):
            other_seed = logits(loaded, input_ids=torch.tensor([ids[0]]))[0]
        after = logits(loaded, input_ids=torch.tensor([ids[0]]))[0]
    assert torch.equal(alone[0], again)
    assert not torch.allclose(alone[0], other_seed, atol=1e-3)
    assert torch.equal(after, before[0])
    torch.testing.assert_close(torch.stack(stepped), alone[0], rtol=0, atol=1e-4)
    for row, (expected, length) in enumerate(zip(alone, map(len, ids), strict=True)):
        assert not torch.allclose(expected, before[row], atol=1e-2)
        torch.testing.assert_close(together[row, -length:], expected, rtol=0, atol=1e-4)
        # The base forward takes positions from the mask only where it is told so, the draws always.
        if length == width:
            torch.testing.assert_close(by_mask[row], expected, rtol=0, atol=1e-4)


def held(loaded: LoadedModel) -> dict[str, object]:
    """Classes and names of everything on the model's modules, and its config."""
    modules = {
        name: (type(module), set(vars(module)), set(module._buffers), set(module._modules))
        for name, module in loaded.model.named_modules()
    }
    return {**modules, "config": dict(vars(loaded.model.config)), "state": set(loaded.model.state_dict())}


def test_nothing_is_left_behind(loaded: LoadedModel) -> None:
    before, state = held(loaded), set(loaded.model.state_dict())
    with changed(loaded, selection(), seed=3, draws="expected"):
        assert {name.rsplit(".", 1)[1] for name in set(loaded.model.state_dict()) - state} == {
            "unskill_na_index",
            "unskill_na_params",
            "unskill_na_key",
        }
    assert held(loaded) == before


def test_nothing_is_left_behind_where_it_cannot_be_installed(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, first = held(loaded), selection().adjusted
    wrong = SelectedNeurons(first[2].index, first[2].params[:, :-1])  # one neuron without figures
    with pytest.raises(RuntimeError), changed(loaded, NeuronChanges({**first, 2: wrong}), seed=3):
        pass
    assert held(loaded) == before
    install = InterventionMLP.unskill_install

    def fail_at_the_second(self: InterventionMLP, config: Any, **counts: Any) -> None:
        install(self, config, **counts)
        if self is loaded.model.base_model.layers[2].mlp:
            raise MemoryError

    monkeypatch.setattr(InterventionMLP, "unskill_install", fail_at_the_second)
    with pytest.raises(MemoryError), changed(loaded, selection(), seed=3):
        pass
    assert held(loaded) == before
