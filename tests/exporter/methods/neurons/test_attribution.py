"""Attribution against what really happens: the loss with one neuron's key moved a little, by finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from exporter.methods.moments import Gaussian
from exporter.methods.neurons.attribution import AttributionSums, attribute, expected_change
from exporter.methods.neurons.texts import longest_first
from exporter.models.files import find_base
from exporter.models.loading import LoadedModel, load
from exporter.models.prober import Prober
from exporter.prompts.sources import Prompt
from exporter.prompts.texts import as_texts
from tests.tiny import FORGET, one_thread, tiny_model

# Norms compute in float32 whatever the model is in: a smaller one drowns in their rounding.
STEP = 0.02
TEXTS = [text[: 30 + 9 * place] for place, text in enumerate(FORGET[:4])]


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "granite"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    base = tiny_model(tmp_path_factory.mktemp("base") / "tiny", request.param)
    model = load(find_base(str(base)), "float32", "cpu")
    model.model.double()
    return model


def gaussians() -> tuple[Gaussian, Gaussian]:
    generator = torch.Generator().manual_seed(2)

    def one() -> Gaussian:
        mean = torch.randn(3, 64, generator=generator, dtype=torch.float64)
        return Gaussian(50, mean, torch.rand(3, 64, generator=generator, dtype=torch.float64) + 0.5)

    return one(), one()


def loss(loaded: LoadedModel, ids: torch.Tensor, layer: int, neuron: int, step: float) -> float:
    """Sum of the token losses with the expected move of one neuron, scaled by step, added to its key."""
    forget, retain = gaussians()
    mlp = loaded.model.base_model.layers[layer].mlp
    params = torch.stack([forget.mean, forget.deviation, retain.mean, retain.deviation], 1)[layer]
    seen = {}

    def key(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        change = expected_change(seen["gate"], params, mlp.act_fn) * seen["up"]
        moved = inputs[0].clone()
        moved[:, 1:, neuron] += step * change[:, 1:, neuron]  # the first token is not moved
        return (moved,)

    handles = [
        mlp.gate_proj.register_forward_hook(lambda module, inputs, output: seen.update(gate=output)),
        mlp.up_proj.register_forward_hook(lambda module, inputs, output: seen.update(up=output)),
        mlp.down_proj.register_forward_pre_hook(key),
    ]
    with torch.no_grad():
        logits = loaded.model(input_ids=ids).logits[0, :-1].double()
    for handle in handles:
        handle.remove()
    return float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))


def test_against_finite_differences(loaded: LoadedModel) -> None:
    prompts = [Prompt(text, "source", row) for row, text in enumerate(TEXTS)]
    texts = longest_first(as_texts(loaded.tokenizer, prompts, "--forget", None))
    with one_thread():
        found = attribute(Prober(loaded, batch_size=3), texts, *gaussians(), "texts")
        tokens = sum(len(text.ids) - 1 for text in texts)
        for layer, neuron in ((0, 3), (1, 40), (2, 63)):
            slopes = []
            for text in texts:
                ids = torch.tensor([text.ids])
                up, down = (loss(loaded, ids, layer, neuron, step) for step in (STEP, -STEP))
                slopes.append((up - down) / (2 * STEP))
            expected = sum(slopes) / tokens
            assert float(found.mean[layer, neuron]) == pytest.approx(expected, rel=5e-3, abs=1e-6)
            assert abs(expected) <= float(found.magnitude[layer, neuron])
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_error_is_that_of_the_ratio_over_texts() -> None:
    """However texts are batched, the same; where all texts lose alike per token, none."""
    generator = torch.Generator().manual_seed(0)
    change, tokens = torch.randn(6, 5, 4, generator=generator), torch.tensor([5.0, 4, 5, 2, 3, 5]).double()
    whole, parts = AttributionSums(torch.Size([1, 4])), AttributionSums(torch.Size([1, 4]))
    for sums, batches in ((whole, [slice(0, 6)]), (parts, [slice(0, 2), slice(2, 6)])):
        for rows in batches:
            batch = AttributionSums(torch.Size([1, 4]))
            batch.update(0, change[rows], tokens[rows])
            batch.count(tokens[rows])
            sums.merge(batch)
    each = change.sum(1).double()
    mean = each.sum(0) / tokens.sum()
    residual = each - mean * tokens[:, None]
    for sums in (whole, parts):
        found = sums.freeze()
        torch.testing.assert_close(found.mean[0], mean)
        torch.testing.assert_close(found.error[0], residual.square().sum(0).sqrt() / tokens.sum())
        torch.testing.assert_close(found.magnitude[0], change.double().abs().sum((0, 1)) / tokens.sum())
    alike = AttributionSums(torch.Size([1, 4]))
    alike.update(0, torch.ones(3, 2, 4), torch.tensor([2.0, 2, 2]).double())
    alike.count(torch.tensor([2.0, 2, 2]).double())
    assert alike.freeze().error.abs().max() < 1e-9


def test_nothing_is_expected_of_what_looks_retained() -> None:
    params = torch.tensor([[3.0], [1.0], [0.0], [1.0]])
    change = expected_change(torch.tensor([[-1.0], [1.4], [3.0]]), params, torch.nn.functional.silu)
    assert change[0, 0] == change[1, 0] == 0
    chance = torch.sigmoid(torch.tensor(4.5))
    expected = chance * (F.silu(torch.tensor(0.0)) - F.silu(torch.tensor(3.0)))
    torch.testing.assert_close(change[2, 0], expected)
