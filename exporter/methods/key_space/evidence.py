"""Layer, alpha and reported rates from the scores of the prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
)
from exporter.methods.key_space.hypercubes import KeyMoments, KeySpace
from exporter.methods.key_space.scoring import fit_keys, score_keys, score_unseen
from exporter.methods.key_space.spool import KeySpool
from exporter.models.prober import KeyProber
from exporter.prompts.formats import SECOND_TURN, SYSTEM, Formatter, Query
from exporter.prompts.packaged import EVERYDAY
from exporter.prompts.splits import ForgetParts, RetainParts
from exporter.recipes.settings import SkillSettings

# Tokens of the base's own answers that are checked for false blocks.
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
    """Scores of every part except the fit part; rows are in the order of the parts' queries.

    `fitted`: the prompts of the fit part in every format. `choose_unseen`: these and those of the choose part in every
    format, scored without the fit of their own variant; `report_unseen`: likewise the report part. `retain_others`:
    retain and everyday prompts of the choose part in the formats that were not drawn for them.
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
        fits = dict(zip(self.keys.formats, self.keys.gaussians, strict=True))
        return {
            **{f"ksd.{name}.mean": fit.mean for name, fit in fits.items()},
            **{f"ksd.{name}.deviation": fit.deviation for name, fit in fits.items()},
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
    """One row of the table of layers. `choice`: from the choose parts; the rest from the report parts, at the alpha
    that this layer would get: forget prompts blocked, and false blocks of retain and everyday prompts (at the prompt's
    last token, and over answers)."""

    choice: LayerChoice
    alpha: float
    blocked: Rate
    everyday_prompts: Rate
    retain_prompts: Rate
    answers: Rate


@dataclass(frozen=True)
class Decision:
    """The chosen layer and alpha, and their rates. `fault`: why they do not separate the skill within the limits;
    None if they do."""

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

    answer_tokens: length of the greedy answers to retain and everyday prompts; 0 scores the prompts alone.
    """
    fits = [fit(prober, formatter, forget) for forget, _ in skills]
    # Skills share most harmless prompts: each answer is generated once, for all of them.
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
    """A skill's keys with their sources: the fit part in every format, its moments and its own unseen scores."""

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

    Raises BadInput if a kind of everyday prompts belongs to the skill; kinds_known: skip this check.
    """
    choices = layer_choices(
        evidence.choose,
        evidence.retain_choose,
        evidence.choose_unseen.scores,
        torch.cat([evidence.retain_choose.prompt, evidence.retain_others.scores]),
        settings.target_block_rate,
        expected_share(len(evidence.calibrate), settings.target_block_rate),
    )
    if not kinds_known:
        rows = everyday_rows(evidence.retain_parts.choose)
        everyday = [query for query in evidence.retain_parts.choose if query.prompt.source == EVERYDAY]
        check_kinds(everyday, evidence.retain_choose.prompt[rows], choices)
    asked = settings.layer_number(len(choices))
    candidates = choices if asked is None else [choices[asked]]
    best = best_layer(candidates, settings.max_false_block)
    # If no layer separates, --force writes the one with the fewest false blocks.
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
        # The calibration part may have outliers that the smaller choose part lacks.
        now = rate_within(evidence.retain_choose.answer[:, layer], alpha.value)
        if now.low > settings.max_false_block:
            fault = (
                f"layer {layer} looked best, but alpha {alpha.value:.1f}, which holds the calibration prompts, also "
                f"blocks {now.hits} of {now.total} harmless prompts (--max-false-block {settings.max_false_block}); "
                "try more forget prompts, or a --layer of the table"
            )
    retain = evidence.retain_parts.report
    kinds = {
        kind: rate_within(evidence.retain_report.answer[rows, layer], alpha.value)
        for kind, rows in groups(range(len(retain)), lambda row: retain[row].prompt.kind or "").items()
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
    rows = everyday_rows(evidence.retain_parts.report)
    sides = evidence.report, evidence.retain_report.prompt, evidence.retain_report.answer
    forget, prompts, answers = (scores[:, choice.layer] for scores in sides)
    parts = forget, prompts[rows], prompts[~rows], answers
    return LayerRow(choice, alpha, *(rate_within(scores, alpha) for scores in parts))


def everyday_rows(queries: Sequence[Query]) -> Tensor:
    """Which of the queries are everyday prompts: (n,) bool."""
    return torch.tensor([query.prompt.source == EVERYDAY for query in queries], dtype=torch.bool)


def rate_within(scores: Tensor, alpha: float) -> Rate:
    """The rate of scores (n,) up to alpha."""
    return rate(int((scores <= alpha).sum()), len(scores))


def groups(rows: Iterable[int], key: Callable[[int], str]) -> dict[str, list[int]]:
    """Row numbers by key."""
    found: dict[str, list[int]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def by_source(queries: Sequence[Query], scores: Tensor, alpha: float) -> dict[str, dict[str, Rate]]:
    """Rates of scores (n,) up to alpha by source and, of each source, for every format and for "all"."""
    found = {}
    for source, rows in groups(range(len(queries)), lambda row: queries[row].prompt.source).items():
        formats = groups(rows, lambda row: queries[row].format) | {"all": rows}
        found[source] = {name: rate_within(scores[formats[name]], alpha) for name in sorted(formats)}
    return found


def unseen_rates(unseen: Scored, layer: int, alpha: float) -> dict[str, dict[str, Rate]]:
    """Rates of forget prompts blocked under system prompts and after exchanges that were left out of the fit."""
    rows = [row for row, query in enumerate(unseen.queries) if query.format in (SYSTEM, SECOND_TURN)]
    return by_source([unseen.queries[row] for row in rows], unseen.scores[rows, layer], alpha)


def measure_limits(
    prober: KeyProber, formatter: Formatter, evidence: Evidence, decision: Decision, refusal: str
) -> dict[str, Rate]:
    """Rates of the forget report part blocked in known weak spots of KSD: after a refusal, with a prefill."""
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
        rates[name] = rate_within(scores[:, decision.layer], decision.alpha.value)
    return rates
