"""Statistics and losses of texts, in padded batches, against one text at a time in float64."""

from __future__ import annotations

import pytest
import torch

from exporter.methods.neurons.texts import counted_tokens, longest_first, probe_texts, text_losses
from exporter.models.files import find_base
from exporter.models.hooks import key_hooks, pre_activation_hooks
from exporter.models.loading import LoadedModel, load
from exporter.models.prober import Prober
from exporter.prompts.sources import Prompt
from exporter.prompts.texts import as_texts
from tests.tiny import FORGET, RETAIN, one_thread, tiny_model

TEXTS = [text[: 20 + 7 * place] for place, text in enumerate([*FORGET[:6], *RETAIN[:5]])]


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    base = tiny_model(tmp_path_factory.mktemp("base") / "tiny", request.param)
    return load(find_base(str(base)), "float32", "cpu")


def queries(loaded: LoadedModel) -> list:
    prompts = [Prompt(text, "source", row) for row, text in enumerate(TEXTS)]
    return longest_first(as_texts(loaded.tokenizer, prompts, "--forget", None))


def test_statistics(loaded: LoadedModel) -> None:
    texts = queries(loaded)
    values: list[list[torch.Tensor]] = [[] for _ in range(3)]
    keys: list[list[torch.Tensor]] = [[] for _ in range(3)]
    with one_thread(), torch.inference_mode():
        with (
            pre_activation_hooks(loaded.model, lambda layer, each: values[layer].append(each[0].double())),
            key_hooks(loaded.model, lambda layer, each: keys[layer].append(each[0].double())),
        ):
            for text in texts:
                loaded.model(input_ids=torch.tensor([text.ids]))
        found = probe_texts(Prober(loaded, batch_size=4), texts, "texts").freeze()
    for layer in range(3):
        every = torch.cat(values[layer])
        assert found.gaussian.count == len(every) == sum(len(text.ids) for text in texts)
        torch.testing.assert_close(found.gaussian.mean[layer], every.mean(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.gaussian.deviation[layer], every.std(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.magnitude[layer], torch.cat(keys[layer]).abs().mean(0), rtol=1e-4, atol=1e-4)


def test_neither_pads_nor_the_bos_at_the_beginning_count() -> None:
    ids = torch.tensor([[0, 0, 1, 5, 1], [0, 7, 1, 5, 6]])
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])}
    assert counted_tokens(inputs, 1).tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]
    assert counted_tokens(inputs, None).tolist() == inputs["attention_mask"].tolist()


def test_losses(loaded: LoadedModel) -> None:
    texts = queries(loaded)
    with one_thread():
        found = text_losses(Prober(loaded, batch_size=3), texts, "texts")
        for row, text in enumerate(texts):
            ids = torch.tensor([text.ids])
            with torch.inference_mode():
                mean = float(loaded.model(input_ids=ids, labels=ids).loss)
            assert found.tokens[row] == len(text.ids) - 1
            assert float(found.total[row]) == pytest.approx(mean * (len(text.ids) - 1), rel=1e-4)
