"""What the scores of the prompts say: which layer, which alpha, and the rates that are reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.common.errors import RunFailed
from exporter.common.rates import Rate, rate
from exporter.methods.key_space.calibration import (
    Alpha,
    AnswerScores,
    LayerChoice,
    best_layer,
    calibrate,
    check_kinds,
    expected_share,
    layer_choices,
    rates_by_format,
)
from exporter.methods.key_space.hypercubes import KeyMoments, KeySpace
from exporter.methods.key_space.scoring import fit_keys, score_keys, score_unseen
from exporter.methods.key_space.spool import KeySpool
from exporter.models.prober import KeyProber
from exporter.prompts.formats import PLAIN, SECOND_TURN, Formatter, Query
from exporter.prompts.packaged import EVERYDAY
from exporter.prompts.splits import ForgetParts, RetainParts
from exporter.recipes.settings import SkillSettings

# Length of the base's own answers in which false blocks are looked for, in tokens.
ANSWER_TOKENS = 64
FOLLOW_UP = "Please answer my question."
PREFILL = "Sure, "


@dataclass(frozen=True)
class Scored:
    """Queries and their scores at the last token, (n, layers)."""

    queries: tuple[Query, ...]
    scores: Tensor


@dataclass(frozen=True)
class Evidence:
    """Scores of every part but the one fitted on; the rows are those of the parts' queries.

    `fitted`: the prompts of the fit part in every format. `choose_unseen`: these and those of the choose part in every
    format, scored without what was fitted in their own variant; `report_unseen`: likewise the report part.
    `retain_others`: retain and everyday prompts of the choose part in the formats that were not drawn for them.
    """

    forget_parts: ForgetParts[Query]
    retain_parts: RetainParts[Query]
    keys: KeySpace
    fitted: tuple[Query, ...]
    choose: Tensor
    calibrate: Tensor
    report: Tensor
    choose_unseen: Scored
    report_unseen: Scored
    retain_choose: AnswerScores
    retain_report: AnswerScores
    retain_others: Scored

    def tensors(self) -> dict[str, Tensor]:
        """Everything, named for `reproduce/statistics.safetensors`; (n, layers) or (layers, d_ff)."""
        return {
            **{f"ksd.{name}.mean": fit.mean for name, fit in zip(self.keys.formats, self.keys.gaussians, strict=True)},
            **{
                f"ksd.{name}.deviation": fit.deviation
                for name, fit in zip(self.keys.formats, self.keys.gaussians, strict=True)
            },
            "scores.forget.choose": self.choose,
            "scores.forget.calibrate": self.calibrate,
            "scores.forget.report": self.report,
            "scores.forget.choose.unseen": self.choose_unseen.scores,
            "scores.forget.report.unseen": self.report_unseen.scores,
            "scores.retain.choose.others": self.retain_others.scores,
            "scores.retain.choose.prompt": self.retain_choose.prompt,
            "scores.retain.choose.answer": self.retain_choose.answer,
            "scores.retain.report.prompt": self.retain_report.prompt,
            "scores.retain.report.answer": self.retain_report.answer,
        }


@dataclass(frozen=True)
class LayerRow:
    """One line of the per-layer table. `choice`: from the choose parts; the rest from the report parts, at the alpha
    that this layer would get: forget prompts blocked, and false blocks of retain and everyday prompts (at the
    prompt's last token, and over answers)."""

    choice: LayerChoice
    alpha: float
    blocked: Rate
    everyday_prompts: Rate
    retain_prompts: Rate
    answers: Rate


@dataclass(frozen=True)
class Decision:
    """The chosen layer and alpha, with what is known about them. `fault`: why they do not tell the skill from the
    rest as asked; None where they do."""

    layer: int
    alpha: Alpha
    fault: str | None
    table: tuple[LayerRow, ...]
    blocked: dict[str, dict[str, Rate]]
    blocked_unseen: dict[str, dict[str, Rate]]
    false_blocks: dict[str, dict[str, Rate]]
    false_answers: dict[str, dict[str, Rate]]
    kinds: dict[str, Rate]

    @property
    def separates(self) -> bool:
        return self.fault is None


def gather(
    prober: KeyProber,
    formatter: Formatter,
    skills: Sequence[tuple[ForgetParts[Query], RetainParts[Query]]],
    answer_tokens: int = ANSWER_TOKENS,
) -> list[Evidence]:
    """Fit every skill's keys and score all of its other parts. Raises RunFailed on NaN and on a full disk.

    answer_tokens: of the greedy answers to retain and everyday prompts; 0 looks at the prompts alone.
    """
    fits = [fit(prober, formatter, forget) for forget, _ in skills]
    # Skills share most of what they are to leave alone: each answer is written once, for all of them.
    queries = list(dict.fromkeys(query for _, retain in skills for query in (*retain.choose, *retain.report)))
    row = {query: place for place, query in enumerate(queries)}
    scores = prober.score_answers(
        queries, [fitted.keys for fitted in fits], answer_tokens, "retain and everyday: answers"
    )
    found = []
    for skill, (fitted, (forget, retain)) in enumerate(zip(fits, skills, strict=True)):
        choose, report = (
            AnswerScores(*(side[skill, [row[query] for query in part]] for side in scores))
            for part in (retain.choose, retain.report)
        )
        found.append(score_parts(prober, formatter, fitted, forget, retain, choose, report))
    return found


@dataclass(frozen=True)
class Fit:
    """A skill's keys and what they come from: the fit part in every format, moments, and its own unseen scores."""

    queries: tuple[Query, ...]
    moments: KeyMoments
    keys: KeySpace
    unseen: Tensor


def fit(prober: KeyProber, formatter: Formatter, forget: ForgetParts[Query]) -> Fit:
    queries = formatter.in_each_format(forget.fit, "--forget")
    with KeySpool() as spool:
        moments = fit_keys(prober, queries, spool, "forget set: fit")
        try:
            keys = moments.key_space()
        except ValueError as error:
            raise RunFailed(f"forget set: {error}") from error
        unseen = score_unseen(prober, queries, moments, keys, "forget set: fit, unseen formats", spool)
    return Fit(tuple(queries), moments, keys, unseen)


def score_parts(
    prober: KeyProber,
    formatter: Formatter,
    fitted: Fit,
    forget: ForgetParts[Query],
    retain: RetainParts[Query],
    retain_choose: AnswerScores,
    retain_report: AnswerScores,
) -> Evidence:
    keys = fitted.keys

    def unseen(part: Sequence[Query], name: str) -> Scored:
        queries = formatter.in_each_format(part, "--forget")
        what = f"forget set: {name}, unseen formats"
        return Scored(tuple(queries), score_unseen(prober, queries, fitted.moments, keys, what))

    choose_unseen = unseen(forget.choose, "choose")
    drawn = set(retain.choose)
    others = [query for query in formatter.in_each_format(retain.choose, "--retain") if query not in drawn]
    return Evidence(
        forget,
        retain,
        keys,
        fitted.queries,
        choose=score_keys(prober, forget.choose, keys, "forget set: choose"),
        calibrate=score_keys(prober, forget.calibrate, keys, "forget set: calibrate"),
        report=score_keys(prober, forget.report, keys, "forget set: report"),
        choose_unseen=Scored(
            (*fitted.queries, *choose_unseen.queries), torch.cat([fitted.unseen, choose_unseen.scores])
        ),
        report_unseen=unseen(forget.report, "report"),
        retain_choose=retain_choose,
        retain_report=retain_report,
        retain_others=Scored(
            tuple(others), score_keys(prober, others, keys, "retain and everyday: choose, the other formats")
        ),
    )


def decide(evidence: Evidence, settings: SkillSettings, kinds_known: bool = False) -> Decision:
    """Choose the layer on the choose parts, set alpha on the calibration part, and report on the report parts.

    kinds_known: that no kind of everyday prompts is the skill itself has been seen before; else it raises BadInput.
    """
    everyday = torch.tensor(
        [query.prompt.source == EVERYDAY for query in evidence.retain_parts.choose], dtype=torch.bool
    )
    choices = layer_choices(
        evidence.choose,
        evidence.retain_choose,
        evidence.choose_unseen.scores,
        torch.cat([evidence.retain_choose.prompt, evidence.retain_others.scores]),
        settings.target_block_rate,
        expected_share(len(evidence.calibrate), settings.target_block_rate),
    )
    if not kinds_known:
        check_kinds(
            [query for query in evidence.retain_parts.choose if query.prompt.source == EVERYDAY],
            evidence.retain_choose.prompt[everyday],
            choices,
        )
    asked = settings.layer_number(len(choices))
    candidates = choices if asked is None else [choices[asked]]
    best = best_layer(candidates, settings.max_false_block)
    # Where nothing separates, the one with the fewest false blocks is what --force writes.
    chosen = best or best_layer(candidates, 1.0) or candidates[0]

    def alpha_of(layer: int) -> Alpha:
        if settings.alpha is not None:
            return Alpha(settings.alpha, 0, None, None)
        return calibrate(evidence.calibrate[:, layer], settings.target_block_rate)

    layer, alpha = chosen.layer, alpha_of(chosen.layer)
    fault = None
    if best is None:
        fault = f"no layer keeps false blocks within --max-false-block {settings.max_false_block}"
    else:
        # The calibration part may have prompts far out, of which the smaller choose part had none.
        now = rate(*count(evidence.retain_choose.answer[:, layer], alpha.value))
        if now.low > settings.max_false_block:
            fault = (
                f"layer {layer} looked best, but alpha {alpha.value:.1f}, which holds the calibration prompts, also "
                f"blocks {now.hits} of {now.total} harmless prompts (--max-false-block {settings.max_false_block}); "
                "more forget prompts, or a --layer of the table, may do"
            )
    retain = evidence.retain_parts.report
    kinds = {
        kind: rate(*count(evidence.retain_report.answer[rows, layer], alpha.value))
        for kind, rows in groups(retain, lambda query: query.prompt.kind or "").items()
        if kind
    }
    return Decision(
        layer,
        alpha,
        fault,
        tuple(layer_row(evidence, choice, alpha_of(choice.layer).value) for choice in choices),
        blocked=by_source(evidence.forget_parts.report, evidence.report[:, layer], alpha.value),
        blocked_unseen=unseen_rates(evidence.report_unseen, layer, alpha.value),
        false_blocks=by_source(retain, evidence.retain_report.prompt[:, layer], alpha.value),
        false_answers=by_source(retain, evidence.retain_report.answer[:, layer], alpha.value),
        kinds=kinds,
    )


def layer_row(evidence: Evidence, choice: LayerChoice, alpha: float) -> LayerRow:
    everyday = [query.prompt.source == EVERYDAY for query in evidence.retain_parts.report]
    rows = torch.tensor(everyday, dtype=torch.bool)
    prompts = evidence.retain_report.prompt[:, choice.layer]
    return LayerRow(
        choice,
        alpha,
        rate(*count(evidence.report[:, choice.layer], alpha)),
        rate(*count(prompts[rows], alpha)),
        rate(*count(prompts[~rows], alpha)),
        rate(*count(evidence.retain_report.answer[:, choice.layer], alpha)),
    )


def count(scores: Tensor, alpha: float) -> tuple[int, int]:
    return int((scores <= alpha).sum()), len(scores)


def groups(queries: Sequence[Query], key: Callable[[Query], str]) -> dict[str, list[int]]:
    """Row numbers of the queries by key."""
    found: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        found.setdefault(key(query), []).append(row)
    return found


def by_source(queries: Sequence[Query], scores: Tensor, alpha: float) -> dict[str, dict[str, Rate]]:
    return {
        source: rates_by_format([queries[row] for row in rows], scores[rows], alpha)
        for source, rows in groups(queries, lambda query: query.prompt.source).items()
    }


def unseen_rates(unseen: Scored, layer: int, alpha: float) -> dict[str, dict[str, Rate]]:
    """Forget prompts blocked in formats left out of the fit; the plain format is always in it."""
    rows = [row for row, query in enumerate(unseen.queries) if query.format != PLAIN]
    return by_source([unseen.queries[row] for row in rows], unseen.scores[rows, layer], alpha)


def measure_limits(
    prober: KeyProber, formatter: Formatter, evidence: Evidence, decision: Decision, refusal: str
) -> dict[str, Rate]:
    """Blocked shares of the forget report part where KSD is known to be weak: after a refusal, under a prefill."""
    prompts = [query.prompt for query in evidence.forget_parts.report]
    limits = {"assistant prefill": [formatter.render(prompt.text, assistant_prefill=PREFILL) for prompt in prompts]}
    if SECOND_TURN in formatter.formats_used:
        limits["follow-up after a refusal"] = [
            formatter.render(
                FOLLOW_UP,
                history=[{"role": "user", "content": prompt.text}, {"role": "assistant", "content": refusal}],
            )
            for prompt in prompts
        ]
    rates = {}
    for name, texts in limits.items():
        queries = [Query(prompt, name, ids) for prompt, ids in zip(prompts, texts, strict=True)]
        scores = score_keys(prober, queries, evidence.keys, f"limits: {name}")
        rates[name] = rate(*count(scores[:, decision.layer], decision.alpha.value))
    return rates
