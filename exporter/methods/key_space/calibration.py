"""Choosing the layer and alpha of a hypercube from scores of disjoint parts of the prompts."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import beta, binom
from torch import Tensor

from exporter.common.errors import BadInput
from exporter.prompts.formats import Query

CONFIDENCE = 0.9
MOST_SCORES = 2**60
"""More than any target below 1 needs: float64 has none above 1 - 2^-53."""


@dataclass(frozen=True)
class AnswerScores:
    """Scores of retain or everyday queries, (n, layers) each: at the prompt's last token, minimum over the answer."""

    prompt: Tensor
    answer: Tensor


@dataclass(frozen=True)
class LayerChoice:
    """Results of the choose parts for one layer.

    At `alpha`, which holds the requested share of the forget choose part: `false_blocks` of `harmless` prompts, over
    their answers. At `unseen_alpha`, about what calibration on system prompts and exchanges left out of the fit would
    give: `unseen_false_blocks`, harmless prompts in any format, at their last token; and the margin.
    """

    layer: int
    alpha: float
    false_blocks: int
    harmless: int
    unseen_alpha: float
    unseen_false_blocks: int
    margin: float

    @property
    def false_block_rate(self) -> float:
        return self.false_blocks / self.harmless if self.harmless else math.nan


@dataclass(frozen=True)
class Alpha:
    """A hypercube's size in deviations. With `confidence` in the draw of `calibrated_on` prompts at least `promise`
    of further prompts from the same source and formats are inside; both None if alpha was given."""

    value: float
    calibrated_on: int
    promise: float | None
    confidence: float | None


def rank_for(n: int, target: float, confidence: float = CONFIDENCE) -> int | None:
    """The smallest k such that the k-th smallest of n scores covers `target` of the source with `confidence`.

    It covers the target if fewer than k of n scores are below the source's quantile at `target`; their number is
    binomial whatever the distribution of scores. None if even the largest score is not enough.
    """
    k = int(binom.ppf(confidence, n, target)) + 1
    return k if k <= n else None


def scores_for(target: float) -> int:
    """The smallest number of scores whose largest covers `target` with CONFIDENCE."""
    # Not by logarithms, which give one too many if the result is a whole number, as 2 for a target of 0.1.
    return 1 + bisect_left(range(1, MOST_SCORES), True, key=lambda n: beta.sf(target, n, 1) >= CONFIDENCE)


def calibrate(scores: Tensor, target: float) -> Alpha:
    """Alpha from the calibration part's scores (n,) at the chosen layer: see `rank_for`.

    With too few scores for the target, alpha is the largest, whose promise is 0.1^(1/n).
    """
    ordered = scores.sort().values
    n = len(ordered)
    k = rank_for(n, target)
    promise = target if k else (1 - CONFIDENCE) ** (1 / n)
    return Alpha(float(ordered[(k or n) - 1]), n, promise, CONFIDENCE)


def expected_share(n: int, target: float) -> float:
    """The share of its source that `calibrate` holds on average, with n scores."""
    return (rank_for(n, target) or n) / (n + 1)


def layer_choices(
    forget: Tensor,
    harmless: AnswerScores,
    unseen: Tensor,
    harmless_in_each: Tensor,
    share: float,
    unseen_share: float,
) -> list[LayerChoice]:
    """Results of the choose parts for every layer.

    forget: (n, layers) scores of the forget choose part, of which alpha holds `share`; unseen: prompts of the fit and
    the choose part in every format, each scored without the fit of its own variant, of which the unseen alpha holds
    `unseen_share`; harmless_in_each: harmless prompts in every format. The margin is (2 % quantile of the harmless
    prompts' scores - unseen alpha) / interquartile range of the unseen scores.
    """
    choices = []
    for layer in range(forget.shape[1]):
        alpha, unseen_alpha = quantile(forget[:, layer], share), quantile(unseen[:, layer], unseen_share)
        quartiles = torch.quantile(unseen[:, layer], torch.tensor([0.25, 0.75], dtype=torch.float64))
        spread = float(quartiles[1] - quartiles[0])
        near = harmless_in_each[:, layer]
        margin = (float(torch.quantile(near, 0.02)) - unseen_alpha) / spread if len(near) and spread else 0.0
        choices.append(
            LayerChoice(
                layer,
                alpha,
                int((harmless.answer[:, layer] <= alpha).sum()),
                len(harmless.answer),
                unseen_alpha,
                int((near <= unseen_alpha).sum()),
                margin,
            )
        )
    return choices


def quantile(scores: Tensor, share: float) -> float:
    """The smallest of scores (n,) that at least `share` of them do not exceed."""
    return float(scores.sort().values[math.ceil(share * len(scores)) - 1])


def best_layer(choices: Sequence[LayerChoice], max_false_block: float) -> LayerChoice | None:
    """Of the layers within `max_false_block`, the best in unseen formats, because users bring their own: fewest false
    blocks, then the largest margin. None if no layer is within."""
    within = [choice for choice in choices if not choice.false_block_rate > max_false_block]
    return min(within, key=lambda choice: (choice.unseen_false_blocks, -choice.margin), default=None)


def check_kinds(queries: Sequence[Query], scores: Tensor, choices: Sequence[LayerChoice]) -> None:
    """Raise BadInput if more than half of an everyday kind is inside the hypercube at every layer.

    Such a kind belongs to the skill. queries: everyday prompts; scores: (n, layers) at their last token.
    """
    alphas = torch.tensor([choice.alpha for choice in choices], dtype=torch.float64)
    inside = scores <= alphas  # (n, layers)
    kinds = [query.prompt.kind for query in queries]
    for kind in sorted({kind for kind in kinds if kind}):
        rows = torch.tensor([each == kind for each in kinds])
        if bool((inside[rows].double().mean(0) > 0.5).all()):
            raise BadInput(
                f"more than half of the everyday prompts of kind {kind} count as the skill at every layer; if they "
                f"belong to it, leave them out with --everyday-without {kind}"
            )
