"""From results by item to the figures of a task: of one model, and of two over the same items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from exporter.common.rates import rate
from exporter.evaluation.paired import flips, loss_rise
from exporter.evaluation.records import BASE, EDITED, Result
from exporter.evaluation.scoring import Choices, Perplexity, Refusals
from exporter.evaluation.tasks import Task

DROP = 0.5
"""An answer is lost where its mean token loss rises by at least so many nats: perplexity x1.65."""


def summarised(task: Task, results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Figures of every model by its role, over the same items.

    Rates with their exact 95 % intervals; for texts, the perplexity of those in which no model has a blocked position,
    where a loss means nothing. Where logits are scored, "overwritten": see `overwritten`.
    """
    if isinstance(task, Perplexity):
        return {
            role: perplexity(found, unblocked(*results.values())) | overwritten(found)
            for role, found in results.items()
        }
    scored = isinstance(task, Choices)
    return {role: rates(task, found) | (overwritten(found) if scored else {}) for role, found in results.items()}


def overwritten(results: Sequence[Result]) -> dict[str, dict[str, int]]:
    """How many of the scored positions are blocked, so that the refusal's logits stand in place of the prediction; of
    how many, and in how many items."""
    blocked = [each["blocked_positions"] for each in results]
    scored = sum(each["positions"] for each in results)
    return {"overwritten": {"positions": sum(blocked), "of": scored, "items": sum(map(bool, blocked))}}


def unblocked(*runs: Sequence[Result]) -> list[int]:
    """The rows of the texts that have no blocked position in any run."""
    texts = enumerate(zip(*runs, strict=True))
    return [row for row, each in texts if not any(one["blocked_positions"] for one in each)]


def perplexity(results: Sequence[Result], rows: Sequence[int]) -> dict[str, Any]:
    """Of the texts in these rows."""
    tokens = sum(results[row]["tokens"] for row in rows)
    loss = sum(results[row]["loss"] for row in rows) / tokens if tokens else None
    return {"loss": loss, "perplexity": None if loss is None else math.exp(loss), "tokens": tokens}


def rates(task: Task, results: Sequence[Result]) -> dict[str, Any]:
    """Figures of one model on a task that counts items."""
    if isinstance(task, Refusals):
        parts: dict[str, list[Result]] = {}
        for result in results:
            parts.setdefault(result["format"], []).append(result)
        by_format = {name: share(part, "refused") for name, part in parts.items()} if len(parts) > 1 else {}
        return {"refused": {"all": share(results, "refused")} | by_format}
    found = {"correct": share(results, "correct"), "refused": share(results, "refused")}
    if results and all("f1" in result or result["refused"] for result in results):
        found["f1"] = sum(result.get("f1", 0.0) for result in results) / len(results)
    return found


def share(results: Sequence[Result], name: str) -> dict[str, Any]:
    return rate(sum(bool(result[name]) for result in results), len(results)).as_json()


def compared(task: Task, results: Mapping[str, Sequence[Result]], seed: int) -> dict[str, Any]:
    """How the edited model differs from the base, as "difference"; nothing where the base was not run.

    Over the same items, paired. Right or wrong: counts of items and the exact McNemar test. Texts: rise of the token
    loss in nats over those that have no blocked position, with its 95 % interval over texts; "dropped": how many
    answers are lost, of the texts that have one.
    """
    if BASE not in results:
        return {}
    first, second = results[BASE], results[EDITED]
    if isinstance(task, Perplexity):
        both = [(first[row], second[row]) for row in unblocked(first, second)]
        if not both:
            return {"difference": {"texts": 0}}
        old, new = ([pair[run]["loss"] for pair in both] for run in (0, 1))
        rise = loss_rise(old, new, [one["tokens"] for one, _ in both], seed)
        ratios = {f"ratio_{name}" if name != "mean" else "ratio": math.exp(value) for name, value in rise.items()}
        answers = [(one, other) for one, other in both if one["answer_tokens"]]
        lost = sum(other["answer_loss"] - one["answer_loss"] >= DROP * one["answer_tokens"] for one, other in answers)
        figures = {"texts": len(both), "dropped": rate(lost, len(answers)).as_json()}
        return {"difference": figures | rise | ratios}
    name = "refused" if isinstance(task, Refusals) else "correct"
    return {"difference": flips([each[name] for each in first], [each[name] for each in second])}
