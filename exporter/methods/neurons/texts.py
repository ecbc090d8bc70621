"""Whole texts through the model: statistics of every neuron over their tokens, and losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.methods.neurons.statistics import NeuronSums
from exporter.methods.neurons.trade_off import TextLosses
from exporter.models.batches import PROBE_TOKENS
from exporter.models.hooks import key_hooks, pre_activation_hooks
from exporter.models.prober import KeyProber, Prober, check_finite
from exporter.models.tokens import positions_of
from exporter.prompts.formats import Query


def longest_first(queries: Sequence[Query]) -> list[Query]:
    """The order in which texts are probed, and a probe is resumed."""
    return sorted(queries, key=lambda query: -len(query.ids))


def probe_texts(
    prober: Prober,
    texts: Sequence[Query],
    what: str,
    sums: NeuronSums | None = None,
    after: Callable[[int, NeuronSums], None] = lambda done, sums: None,
) -> NeuronSums:
    """Statistics of every neuron over the texts, in one pass, without the output head.

    texts: in the order of `longest_first`; sums: of earlier texts, to be added to; after(done, sums) is called after
    every batch with the number of texts done. Raises RunFailed if the model computes NaN or infinity.
    """
    sums = sums or NeuronSums(prober.layers)
    done = 0

    def run(rows: list[int]) -> tuple[int, NeuronSums]:
        # Separate until the batch is complete: one that does not fit in memory is retried in halves.
        batch = NeuronSums(prober.layers)
        inputs = prober.pad([texts[row] for row in rows])
        mask = counted_tokens(inputs, prober.loaded.tokenizer.bos_token_id)
        model = prober.loaded.model
        with (
            pre_activation_hooks(model, lambda layer, values: batch.moments.update(layer, values, mask)),
            key_hooks(model, lambda layer, keys: batch.update_keys(layer, keys, mask)),
        ):
            prober.forward([texts[row] for row in rows])
        return len(rows), batch

    for count, batch in prober.batches(texts, run, what, unit="text"):
        sums.merge(batch)
        done += count
        after(done, sums)
    for moments in sums.moments.layers:
        check_finite(moments.squares, what)
    return sums


def counted_tokens(inputs: dict[str, Tensor], bos_id: int | None) -> Tensor:
    """Mask (batch, positions) of the tokens that count: no pads, and no BOS at the beginning of a text."""
    mask = inputs["attention_mask"]
    if bos_id is None:
        return mask
    return mask * ~((inputs["input_ids"] == bos_id) & (mask.cumsum(-1) == 1))


def text_losses(prober: KeyProber, texts: Sequence[Query], what: str) -> TextLosses:
    """Loss of each text's tokens but the first, given those before: sums in nats, and numbers of tokens."""
    return losses_from(prober, texts, what, [[1] * len(texts)])[0]


def losses_from(
    prober: KeyProber, texts: Sequence[Query], what: str, starts: Sequence[Sequence[int]]
) -> tuple[TextLosses, ...]:
    """The same for parts of the texts, in one pass: for each of `starts`, the tokens of each text from there on, but
    not the first. Raises RunFailed if the model computes NaN or infinity."""
    first = torch.tensor(starts).view(len(starts), len(texts)).clamp(min=1)
    total, tokens = (torch.zeros(len(starts), len(texts), dtype=torch.float64) for _ in range(2))

    def run(rows: list[int]) -> None:
        inputs = prober.pad([texts[row] for row in rows])
        positions = positions_of(inputs)
        with torch.inference_mode():
            logits = prober.logits(inputs)[:, :-1]
            targets = inputs["input_ids"][:, 1:]
            each = torch.stack(  # by row: float32 copies of all logits would take twice their memory
                [
                    F.cross_entropy(row.float(), target, reduction="none")
                    for row, target in zip(logits, targets, strict=True)
                ]
            )
        # Left-padded, and pads have position 0: they do not count.
        counts = positions[:, 1:].cpu() >= first[:, rows].unsqueeze(-1)
        total[:, rows] = (each.double().cpu() * counts).sum(-1)
        tokens[:, rows] = counts.double().sum(-1)

    for _ in prober.batches(texts, run, what, PROBE_TOKENS, unit="text"):
        pass
    return tuple(TextLosses(*each) for each in zip(check_finite(total, what), tokens, strict=True))
