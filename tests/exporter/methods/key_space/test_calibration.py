import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom
from torch import Tensor

from exporter.common.errors import BadInput
from exporter.common.rates import rate
from exporter.methods.key_space import calibration
from exporter.methods.key_space.calibration import (
    AnswerScores,
    best_layer,
    calibrate,
    check_kinds,
    expected_share,
    layer_choices,
    rank_for,
    scores_for,
)
from exporter.prompts.formats import Query
from exporter.prompts.sources import Prompt


def test_rank_of_the_design() -> None:
    assert rank_for(120, 0.95) == 118


def test_45_prompts_are_the_fewest_that_promise_95_percent() -> None:
    assert rank_for(45, 0.95) == 45
    assert rank_for(44, 0.95) is None
    assert scores_for(0.95) == 45


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 0.995))
def test_the_fewest_scores_that_promise_a_rate(target: float) -> None:
    n = scores_for(target)
    assert rank_for(n, target) == n
    assert n == 1 or rank_for(n - 1, target) is None


def test_a_rate_that_no_number_of_prompts_will_reach_ends() -> None:
    assert scores_for(1 - 2**-53) > 10**16


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_rank_is_the_least_that_a_binomial_count_confirms(n: int, target: float) -> None:
    # P(coverage of the k-th smallest >= target) = P(fewer than k of n uniforms are below target).
    k = rank_for(n, target)
    if k is None:
        assert binom.cdf(n - 1, n, target) < 0.9
        return
    assert binom.cdf(k - 1, n, target) >= 0.9 - 1e-12
    assert k == 1 or binom.cdf(k - 2, n, target) < 0.9


@pytest.mark.parametrize("target", [0.1, 0.5, 0.9**0.5, 0.95, 0.999])
def test_rank_is_the_least_by_the_coverage_of_order_statistics(target: float) -> None:
    # The coverage of the k-th smallest of n is Beta(k, n - k + 1) distributed.
    for n in (0, 1, 2, 3, 44, 45, 46, 300):
        enough = [k for k in range(1, n + 1) if beta.sf(target, k, n - k + 1) >= 0.9]
        assert rank_for(n, target) == (min(enough) if enough else None)


def test_expected_share_is_the_mean_coverage() -> None:
    scores = torch.rand(20_000, 160, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rank = rank_for(160, 0.95)
    assert rank is not None
    held = scores.sort().values[:, rank - 1]  # the coverage of alpha under a uniform score
    assert float(held.mean()) == pytest.approx(expected_share(160, 0.95), abs=1e-3)
    assert expected_share(30, 0.95) == 30 / 31


def test_promise_holds_in_repeated_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    # The rank is the same in every draw, and slow to compute.
    monkeypatch.setattr(calibration, "rank_for", functools.cache(calibration.rank_for))
    generator = torch.Generator().manual_seed(0)
    kept = 0
    for _ in range(2000):
        alpha = calibrate(torch.rand(120, generator=generator, dtype=torch.float64), 0.95)
        kept += alpha.value >= 0.95  # the coverage of alpha under a uniform score
    assert 0.9 <= kept / 2000 <= 0.97


def test_too_few_scores_take_the_largest_and_promise_less() -> None:
    alpha = calibrate(torch.arange(20, dtype=torch.float64), 0.95)
    assert alpha.value == 19.0
    assert alpha.promise == pytest.approx(0.1 ** (1 / 20))


def test_clopper_pearson_interval() -> None:
    assert rate(0, 120).high == pytest.approx(1 - 0.025 ** (1 / 120))
    assert rate(0, 120).low == 0
    assert rate(120, 120).low == pytest.approx(0.025 ** (1 / 120))


def choices_of(forget: Tensor, harmless: AnswerScores, unseen: Tensor | None = None, near: Tensor | None = None):
    """Choices where the formats make no difference, unless unseen or near say otherwise."""
    unseen = forget if unseen is None else unseen
    return layer_choices(forget, harmless, unseen, harmless.prompt if near is None else near, 0.95, 0.9)


def test_the_layer_with_fewest_false_blocks_then_the_widest_margin_is_chosen() -> None:
    forget = torch.stack([torch.linspace(1, 5, 40)] * 3, 1).double()
    answer = torch.full((100, 3), 20.0, dtype=torch.float64)
    answer[:3, 0] = 1.0
    prompt = torch.tensor([20.0, 20.0, 30.0], dtype=torch.float64).expand(100, 3)
    choices = choices_of(forget, AnswerScores(prompt, answer))
    assert [choice.false_blocks for choice in choices] == [3, 0, 0]
    assert choices[0].alpha == float(forget[37, 0])  # the 38th of 40 holds 95 %
    best = best_layer(choices, 0.01)
    assert best is not None and best.layer == 2
    assert best_layer(choices[:1], 0.01) is None


def test_formats_that_it_has_not_seen_decide_between_layers_that_compete() -> None:
    forget = torch.linspace(1, 5, 40).double()[:, None].expand(40, 3)
    far = torch.full((100, 3), 20.0, dtype=torch.float64)
    unseen = torch.stack([forget[:, 0] * factor for factor in (1.0, 4.0, 2.0)], 1).repeat(3, 1)
    near = torch.full((300, 3), 18.0, dtype=torch.float64)
    near[:2, 0] = 2.0  # prompts in other formats than those whose answers were counted
    choices = choices_of(forget, AnswerScores(far, far), unseen, near)
    assert [choice.false_blocks for choice in choices] == [0, 0, 0]
    # Each score is there three times; the 36th of 40 holds 90 %.
    assert [choice.unseen_alpha for choice in choices] == [float(unseen[35, layer]) for layer in range(3)]
    assert [choice.unseen_false_blocks for choice in choices] == [2, 300, 0]
    best = best_layer(choices, 0.01)
    assert best is not None and best.layer == 2


def test_a_rate_just_at_the_bound_competes() -> None:
    forget = torch.linspace(1, 5, 40).double()[:, None]
    answer = torch.full((100, 1), 20.0, dtype=torch.float64)
    answer[0] = 0.0
    assert best_layer(choices_of(forget, AnswerScores(answer, answer)), 0.01) is not None


def test_a_kind_that_is_the_skill_is_named() -> None:
    forget = torch.linspace(1, 5, 40).double()[:, None].expand(40, 2)
    choices = choices_of(forget, AnswerScores(forget, forget))
    queries = [
        Query(Prompt("x", "everyday", row, "budget" if row < 6 else "story"), "plain", (1,)) for row in range(12)
    ]
    scores = torch.full((12, 2), 50.0, dtype=torch.float64)
    scores[:5] = 0.0
    with pytest.raises(BadInput, match="--everyday-without budget"):
        check_kinds(queries, scores, choices)
    scores[:5, 1] = 50.0  # one layer tells them apart: that suffices
    check_kinds(queries, scores, choices)


def test_no_harmless_prompts_leave_every_layer_in() -> None:
    forget = torch.linspace(1, 5, 40).double()[:, None]
    none = torch.zeros(0, 1, dtype=torch.float64)
    (choice,) = choices_of(forget, AnswerScores(none, none))
    assert math.isnan(choice.false_block_rate)
    assert best_layer([choice], 0.01) is choice
