"""Whole texts through the model: statistics of every neuron over their tokens, and the loss of each text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.common.errors import RunFailed
from exporter.methods.neurons.statistics import NeuronSums
from exporter.methods.neurons.trade_off import TextLosses
from exporter.models.batches import PROBE_TOKENS
from exporter.models.hooks import key_hooks, pre_activation_hooks
from exporter.models.prober import KeyProber, Prober
from exporter.models.tokens import positions_of
from exporter.prompts.formats import Query


def longest_first(queries: Sequence[Query]) -> list[Query]:
    """The order in which texts are probed; whoever resumes goes on in it."""
    return sorted(queries, key=lambda query: -len(query.ids))


def probe_texts(
    prober: Prober,
    texts: Sequence[Query],
    what: str,
    sums: NeuronSums | None = None,
    after: Callable[[int, NeuronSums], None] = lambda done, sums: None,
) -> NeuronSums:
    """Statistics of every neuron over the texts, in one pass, without the output head.

    texts: as `longest_first` orders them; sums: what has been seen before, added to; after(done, sums) is called after
    every batch with the number of texts done.
    """
    sums = sums or NeuronSums(prober.layers)
    done = 0

    def run(rows: list[int]) -> tuple[int, NeuronSums]:
        # Apart until the batch is whole: one that does not fit in memory is tried again in halves.
        batch = NeuronSums(prober.layers)
        inputs = prober.pad([texts[row] for row in rows])
        mask = counted_tokens(inputs, prober.loaded.tokenizer.bos_token_id)
        model = prober.loaded.model
        with (
            pre_activation_hooks(model, lambda layer, values: batch.update_pre_activations(layer, values, mask)),
            key_hooks(model, lambda layer, keys: batch.update_keys(layer, keys, mask)),
        ):
            prober.forward([texts[row] for row in rows])
        return len(rows), batch

    for count, batch in prober.batches(texts, run, what, unit="text"):
        sums.merge(batch)
        done += count
        after(done, sums)
    if not all(torch.isfinite(moments.squares).all() for moments in sums.moments.layers):
        raise RunFailed(f"{what}: the model computes NaN or infinity, try another --dtype")
    return sums


def counted_tokens(inputs: dict[str, Tensor], bos_id: int | None) -> Tensor:
    """Mask (batch, positions) of the tokens that count: no pads, and no BOS at a text's beginning."""
    mask = inputs["attention_mask"]
    if bos_id is None:
        return mask
    return mask * ~((inputs["input_ids"] == bos_id) & (mask.cumsum(-1) == 1))


def text_losses(prober: KeyProber, texts: Sequence[Query], what: str) -> TextLosses:
    """Loss of each text's tokens but the first, given those before: sums in nats, and how many tokens they are of."""
    return losses_from(prober, texts, what, [[1] * len(texts)])[0]


def losses_from(
    prober: KeyProber, texts: Sequence[Query], what: str, starts: Sequence[Sequence[int]]
) -> tuple[TextLosses, ...]:
    """The same of parts of the texts, in one pass: for each of `starts`, of each text the tokens from there on (from
    1 at least)."""
    first = torch.tensor(starts).view(len(starts), len(texts)).clamp(min=1)
    total, tokens = (torch.zeros(len(starts), len(texts), dtype=torch.float64) for _ in range(2))

    def run(rows: list[int]) -> None:
        inputs = prober.pad([texts[row] for row in rows])
        positions = positions_of(inputs)
        with torch.inference_mode():
            logits = prober.logits(inputs)[:, :-1]
            targets = inputs["input_ids"][:, 1:]
            each = torch.stack(  # row by row: float32 copies of all logits would take twice their memory
                [
                    F.cross_entropy(row.float(), target, reduction="none")
                    for row, target in zip(logits, targets, strict=True)
                ]
            )
        # Left-padded, and a pad has position 0: none counts.
        counts = positions[:, 1:].cpu() >= first[:, rows].unsqueeze(-1)
        total[:, rows] = (each.double().cpu() * counts).sum(-1)
        tokens[:, rows] = counts.double().sum(-1)

    for _ in prober.batches(texts, run, what, PROBE_TOKENS, unit="text"):
        pass
    if not torch.isfinite(total).all():
        raise RunFailed(f"{what}: the model computes NaN or infinity, try another --dtype")
    return tuple(TextLosses(*each) for each in zip(total, tokens, strict=True))
