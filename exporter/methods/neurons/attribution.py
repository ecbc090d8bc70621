"""What moving a neuron would do to the loss, to first order: one backward pass over texts. Nothing is trained.

For every token but a text's first, which is never moved, the expected move of Neuron Adjust changes the key vector by
sigmoid(d) * (act(mu_r - zf * sd_r) - act(v)) * up where d > 0, and the loss by that times its derivative by the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exporter.common.errors import RunFailed
from exporter.methods.moments import Gaussian
from exporter.models.hooks import mlp_hooks
from exporter.models.prober import Prober
from exporter.models.tokens import positions_of
from exporter.prompts.formats import Query

# A backward pass holds what a forward pass has computed.
ATTRIBUTION_TOKENS = 768


@dataclass(frozen=True)
class Attribution:
    """Change of the loss per predicted token, in nats, by moving each neuron, all (layers, d_ff) float64.

    mean: over the texts; error: the standard error of that, by how texts differ; magnitude: the mean of the absolute
    value over tokens, which also sees what cancels.
    """

    mean: Tensor
    error: Tensor
    magnitude: Tensor


class AttributionSums:
    """Sums over texts of a change x (layers, d_ff), of |x|, x^2, x * tokens and tokens^2."""

    def __init__(self, shape: torch.Size) -> None:
        self.x, self.magnitude, self.squares, self.products = (
            torch.zeros(shape, dtype=torch.float64) for _ in range(4)
        )
        self.tokens = self.tokens_squared = 0.0

    def update(self, layer: int, change: Tensor, tokens: Tensor) -> None:
        """Add one layer's changes (texts, positions, d_ff), 0 at pads; tokens (texts,): those predicted."""
        each = change.sum(1).double().cpu()  # (texts, d_ff)
        self.x[layer] += each.sum(0)
        self.magnitude[layer] += change.abs().sum((0, 1)).double().cpu()
        self.squares[layer] += each.square().sum(0)
        self.products[layer] += tokens @ each

    def count(self, tokens: Tensor) -> None:
        self.tokens += float(tokens.sum())
        self.tokens_squared += float(tokens.square().sum())

    def merge(self, other: AttributionSums) -> None:
        self.x += other.x
        self.magnitude += other.magnitude
        self.squares += other.squares
        self.products += other.products
        self.tokens += other.tokens
        self.tokens_squared += other.tokens_squared

    def freeze(self) -> Attribution:
        """The mean is a ratio of sums; its error is that of the residuals x - mean * tokens of the texts."""
        mean = self.x / self.tokens
        residual = self.squares - 2 * mean * self.products + mean.square() * self.tokens_squared
        return Attribution(mean, residual.clamp(min=0).sqrt() / self.tokens, self.magnitude / self.tokens)


def attribute(prober: Prober, texts: Sequence[Query], forget: Gaussian, retain: Gaussian, what: str) -> Attribution:
    """Attribution of every neuron over texts. Raises RunFailed where the model computes NaN or infinity."""
    shape = forget.mean.shape
    sums = AttributionSums(shape)
    model: Any = prober.loaded.model
    params = torch.stack([forget.mean, forget.deviation, retain.mean, retain.deviation], 1)
    params = params.to(prober.device, torch.float32)  # (layers, 4, d_ff)

    def run(rows: list[int]) -> AttributionSums:
        # Apart until the batch is whole: one that does not fit in memory is tried again in halves.
        batch = AttributionSums(shape)
        inputs = prober.pad([texts[row] for row in rows])
        mask = inputs["attention_mask"]
        real = mask[:, :-1].bool()  # left-padded: where a token is real, so is the next
        tokens = real.sum(1).double().cpu()

        def receive(layer: int, pre_activation: Tensor, up: Tensor, key: Tensor, mlp: Any) -> None:
            def gradient(slope: Tensor) -> None:
                change = expected_change(pre_activation.float(), params[layer], mlp.act_fn) * up.float()
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
    if not torch.isfinite(sums.magnitude).all():
        raise RunFailed(f"{what}: the model computes NaN or infinity, try another --dtype")
    return sums.freeze()


def expected_change(value: Tensor, params: Tensor, activation: Any) -> Tensor:
    """Expected change of act(v) by Neuron Adjust: value (..., d_ff), params (4, d_ff) -> (..., d_ff)."""
    mu_f, sd_f, mu_r, sd_r = params
    zf, zr = (value - mu_f) / sd_f, (value - mu_r) / sd_r
    ratio = (zr.square() - zf.square()) / 2 + (sd_r / sd_f).log()
    chance = torch.where(ratio > 0, torch.sigmoid(ratio), 0.0)
    return chance * (activation(mu_r - zf * sd_r) - activation(value))
