"""First-order effect of moving a neuron on the loss, by one backward pass over texts. Nothing is trained.

For every token but a text's first, which is never moved, the expected move of Neuron Adjust changes the key vector by
sigmoid(d) * (act(mu_r - zf * sd_r) - act(v)) * up where d > 0, and the loss by that times its gradient at the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.methods.moments import Gaussian
from exporter.models.hooks import mlp_hooks
from exporter.models.prober import Prober, check_finite
from exporter.models.tokens import positions_of
from exporter.prompts.formats import Query

# Fewer than for a forward pass, because a backward pass keeps activations.
ATTRIBUTION_TOKENS = 768


@dataclass(frozen=True)
class Attribution:
    """Change of the loss per predicted token, in nats, by moving each neuron, all (layers, d_ff) float64.

    mean: over the texts; error: its standard error, from how texts differ; magnitude: the mean absolute value over
    tokens, which also shows changes that cancel.
    """

    mean: Tensor
    error: Tensor
    magnitude: Tensor


class AttributionSums:
    """Sums over texts of a change x (layers, d_ff), |x|, x^2 and x * tokens, and of tokens and tokens^2."""

    def __init__(self, shape: torch.Size) -> None:
        self.changes = torch.zeros(4, *shape, dtype=torch.float64)
        self.tokens = torch.zeros(2, dtype=torch.float64)

    def update(self, layer: int, change: Tensor, tokens: Tensor) -> None:
        """Add one layer's changes (texts, positions, d_ff), 0 at pads; tokens (texts,): numbers predicted."""
        each = change.sum(1).double().cpu()  # (texts, d_ff)
        magnitude = change.abs().sum((0, 1)).double().cpu()
        self.changes[:, layer] += torch.stack([each.sum(0), magnitude, each.square().sum(0), tokens @ each])

    def count(self, tokens: Tensor) -> None:
        self.tokens += torch.stack([tokens.sum(), tokens.square().sum()])

    def merge(self, other: AttributionSums) -> None:
        self.changes += other.changes
        self.tokens += other.tokens

    def freeze(self) -> Attribution:
        """The mean is a ratio of sums; its error is that of the residuals x - mean * tokens of the texts."""
        x, magnitude, squares, products = self.changes
        tokens, tokens_squared = self.tokens
        mean = x / tokens
        residual = squares - 2 * mean * products + mean.square() * tokens_squared
        return Attribution(mean, residual.clamp(min=0).sqrt() / tokens, magnitude / tokens)


def attribute(prober: Prober, texts: Sequence[Query], forget: Gaussian, retain: Gaussian, what: str) -> Attribution:
    """Attribution of every neuron over texts. Raises RunFailed if the model computes NaN or infinity."""
    shape = forget.mean.shape
    sums = AttributionSums(shape)
    model: Any = prober.loaded.model
    params = torch.stack([forget.mean, forget.deviation, retain.mean, retain.deviation], 1)
    params = params.to(prober.device, torch.float32)  # (layers, 4, d_ff)

    def run(rows: list[int]) -> AttributionSums:
        # Separate until the batch is complete: one that does not fit in memory is retried in halves.
        batch = AttributionSums(shape)
        inputs = prober.pad([texts[row] for row in rows])
        mask = inputs["attention_mask"]
        real = mask[:, :-1].bool()  # left-padded: where a token is real, so is the next
        tokens = real.sum(1).double().cpu()

        def receive(layer: int, pre_activation: Tensor, up: Tensor, key: Tensor, act: Any) -> None:
            def gradient(slope: Tensor) -> None:
                change = expected_change(pre_activation.float(), params[layer], act) * up.float()
                batch.update(layer, (slope.float() * change).masked_fill(unmoved, 0), tokens)

            key.register_hook(gradient)

        positions = positions_of(inputs)
        unmoved = (positions == 0).unsqueeze(-1)  # first tokens, and pads before them
        embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_(True)
        with torch.enable_grad(), mlp_hooks(model, receive):
            logits = model(
                inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
            ).logits[:, :-1]
            F.cross_entropy(logits[real].float(), inputs["input_ids"][:, 1:][real], reduction="sum").backward()
        batch.count(tokens)
        return batch

    for batch in prober.batches(texts, run, what, ATTRIBUTION_TOKENS, unit="text"):
        sums.merge(batch)
    check_finite(sums.changes, what)
    return sums.freeze()


def expected_change(value: Tensor, params: Tensor, activation: Any) -> Tensor:
    """Expected change of act(v) by Neuron Adjust: value (..., d_ff), params (4, d_ff) -> (..., d_ff)."""
    mu_f, sd_f, mu_r, sd_r = params
    zf, zr = (value - mu_f) / sd_f, (value - mu_r) / sd_r
    ratio = (zr.square() - zf.square()) / 2 + (sd_r / sd_f).log()
    chance = torch.where(ratio > 0, torch.sigmoid(ratio), 0.0)
    return chance * (activation(mu_r - zf * sd_r) - activation(value))
