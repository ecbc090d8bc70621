from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from exporter.methods.neurons.trade_off import HeldOut, Measure, TextLosses, best, explore, rise, upper_rise


def losses(per_token: torch.Tensor, tokens: torch.Tensor) -> TextLosses:
    return TextLosses(per_token.double() * tokens, tokens.double())


TOKENS = torch.randint(20, 300, (60,), generator=torch.Generator().manual_seed(0))
BASE = losses(2 + torch.rand(60, generator=torch.Generator().manual_seed(1)), TOKENS)


def shifted(by: float, noise: float = 0.0) -> TextLosses:
    extra = by + noise * torch.randn(60, generator=torch.Generator().manual_seed(2)).double()
    return TextLosses(BASE.total + extra * BASE.tokens, BASE.tokens)


def test_rise_is_of_the_mean_token() -> None:
    one = TextLosses(torch.tensor([2.0, 30.0]).double(), torch.tensor([1.0, 9.0]).double())
    two = TextLosses(torch.tensor([3.0, 30.0]).double(), torch.tensor([1.0, 9.0]).double())
    assert rise(one, two) == pytest.approx(0.1)


def test_upper_end_of_the_interval() -> None:
    assert upper_rise(BASE, shifted(0.02), 0) == pytest.approx(0.02)  # nothing varies
    changed = shifted(0.02, noise=0.1)
    middle, upper = rise(BASE, changed), upper_rise(BASE, changed, 0)
    # Ratio estimator: its standard error in closed form, 1.645 of which is the end of a 90 % interval.
    residual = changed.total - BASE.total - middle * BASE.tokens
    error = residual.square().sum().sqrt() / BASE.tokens.sum()
    assert upper == pytest.approx(middle + 1.645 * float(error), abs=0.25 * float(error))
    assert upper_rise(BASE, changed, 0) == upper


Asked = list[tuple[str, float]]


def recorder(forget: Callable[[str, float], float], retain: Callable[[str, float], float]) -> tuple[Asked, Measure]:
    asked: Asked = []

    def measure(score: str, beta: float) -> HeldOut:
        asked.append((score, beta))
        return HeldOut(shifted(forget(score, beta)), shifted(retain(score, beta)))

    return asked, measure


def test_explore_goes_up_and_refines_beside_the_best() -> None:
    asked, measure = recorder(lambda score, beta: beta, lambda score, beta: 0.0041 * beta)
    trials = explore(["one"], HeldOut(BASE, BASE), measure, budget=0.01, seed=0)
    # 4 % is above the budget but near, 8 % is out of reach; then half way between 2 and 4, and between 2 and 3.
    assert [beta for _, beta in asked] == [0.5, 1.0, 2.0, 4.0, 8.0, 3.0, 2.5]
    assert [trial.beta for trial in trials] == [beta for _, beta in asked]
    chosen = best(trials, 0.01)
    assert chosen is not None and chosen.beta == 2.0


def test_the_budget_decides_and_not_the_end_of_the_percentages() -> None:
    asked, measure = recorder(lambda score, beta: beta, lambda score, beta: 0.0004 * beta)
    trials = explore(["one"], HeldOut(BASE, BASE), measure, budget=0.01, seed=0)
    assert [beta for _, beta in asked] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 24.0, 28.0]
    chosen = best(trials, 0.01)
    assert chosen is not None and chosen.beta == 24.0


def test_explore_ends_with_all_neurons() -> None:
    asked, measure = recorder(lambda score, beta: beta, lambda score, beta: 0.0)
    chosen = best(explore(["one"], HeldOut(BASE, BASE), measure, budget=0.01, seed=0), 0.01)
    assert [beta for _, beta in asked] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0]
    assert chosen is not None and chosen.beta == 100.0


def test_a_poorer_score_is_left_early() -> None:
    asked, measure = recorder(
        lambda score, beta: beta * (1 if score == "good" else 0.1),
        lambda score, beta: 0.003 * beta if score == "good" else 0.012 * beta,
    )
    trials = explore(["good", "poor"], HeldOut(BASE, BASE), measure, budget=0.01, seed=0)
    assert [beta for score, beta in asked if score == "poor"] == [0.5]  # less is forgotten at the same loss
    chosen = best(trials, 0.01)
    assert chosen is not None and (chosen.score, chosen.beta) == ("good", 3.0)


def test_explore_ends_where_nothing_more_is_gained() -> None:
    asked, measure = recorder(lambda score, beta: min(beta, 1.0) - 0.01 * beta, lambda score, beta: 0.0)
    explore(["one"], HeldOut(BASE, BASE), measure, budget=0.01, seed=0)
    assert [beta for _, beta in asked] == [0.5, 1.0, 2.0, 1.5, 1.25]


def test_a_dip_below_the_budget_is_not_missed() -> None:
    losses = {0.5: 0.012, 1.0: 0.004}
    _, measure = recorder(lambda score, beta: beta, lambda score, beta: losses.get(beta, 0.02 * beta))
    chosen = best(explore(["one"], HeldOut(BASE, BASE), measure, budget=0.01, seed=0), 0.01)
    assert chosen is not None and chosen.beta == 1.0


def test_less_than_the_least_is_tried_where_nothing_is_within_budget() -> None:
    asked, measure = recorder(lambda score, beta: beta, lambda score, beta: 0.05 * beta)
    chosen = best(explore(["one"], HeldOut(BASE, BASE), measure, budget=0.01, seed=0), 0.01)
    assert [beta for _, beta in asked] == [0.5, 1.0, 0.25, 0.125, 0.1875, 0.21875]
    assert chosen is not None and chosen.beta == 0.1875


def test_halving_ends_at_a_handful_of_neurons() -> None:
    asked, measure = recorder(lambda score, beta: beta, lambda score, beta: 1.0)
    assert best(explore(["one"], HeldOut(BASE, BASE), measure, budget=0.01, seed=0), 0.01) is None
    assert min(beta for _, beta in asked) == 0.5 / 2**6 and len(asked) == 1 + 6


def test_what_forgets_nothing_is_not_halved() -> None:
    asked, measure = recorder(lambda score, beta: -beta, lambda score, beta: 0.0)
    explore(["one"], HeldOut(BASE, BASE), measure, budget=0.01, seed=0)
    assert min(beta for _, beta in asked) == 0.5


def test_a_given_beta_is_tried_alone() -> None:
    asked, measure = recorder(lambda score, beta: beta, lambda score, beta: 0.0)
    explore(["one", "two"], HeldOut(BASE, BASE), measure, budget=0.01, seed=0, beta=1.7)
    assert asked == [("one", 1.7), ("two", 1.7)]


def test_none_is_best_where_nothing_is_within_budget_or_forgotten() -> None:
    _, measure = recorder(lambda score, beta: beta, lambda score, beta: 1.0)
    assert best(explore(["one"], HeldOut(BASE, BASE), measure, budget=0.01, seed=0), 0.01) is None
    _, measure = recorder(lambda score, beta: -beta, lambda score, beta: 0.0)
    assert best(explore(["one"], HeldOut(BASE, BASE), measure, budget=0.01, seed=0), 0.01) is None


def test_everyday_prompts_are_to_be_within_budget_too() -> None:
    def measure(score: str, beta: float) -> HeldOut:
        return HeldOut(shifted(beta), shifted(-beta), shifted(0.006 * beta))

    trials = explore(["one"], HeldOut(BASE, BASE, BASE), measure, budget=0.01, seed=0)
    chosen = best(trials, 0.01)
    assert chosen is not None and chosen.beta == 1.5
    assert chosen.everyday_rise == pytest.approx(0.009) == chosen.upper
