"""Regions along discriminants: their scores are what the runtime decides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from custom_modeling.buffers import KSD_BOUNDS, KSD_DIRECTIONS, KSD_LIMITS
from custom_modeling.key_space import inside_regions
from exporter.methods.key_space.budget import at_most, thresholds_within
from exporter.methods.key_space.left_out import around_names, fold_names, group_names
from exporter.methods.key_space.region_fit import FitPart, balanced, fit_regions, try_layer
from exporter.methods.key_space.regions import ELSEWHERE, Regions, joined
from exporter.prompts.formats import Query
from exporter.prompts.sources import Prompt
from exporter.prompts.turns import AFTER_ANSWER

SIZE = 24


def regions(seed: int = 0, places: int = 2) -> Regions:
    torch.manual_seed(seed)
    skill, place = torch.randn(2, places, SIZE)
    shift, least = torch.randn(2, places).double()
    return Regions(3, tuple(map(str, range(places))), skill, shift, place, least)


@pytest.mark.parametrize("threshold", [-0.4, 0.5, 2.0])
def test_inside_is_a_score_up_to_the_threshold(threshold: float) -> None:
    found, keys = regions(), torch.randn(400, SIZE)
    scores = found.scores(keys)
    buffers = found.buffers(threshold)
    inside = inside_regions(keys, buffers[KSD_DIRECTIONS], buffers[KSD_LIMITS])
    clear = (scores - threshold).abs() > 1e-5
    assert torch.equal(inside[clear], (scores <= threshold)[clear]) and 0 < int(inside.sum()) < 400
    assert scores.isfinite().all() and (scores >= ELSEWHERE).any()


def test_levelled_regions_have_one_threshold() -> None:
    found, keys = regions(places=3), torch.randn(400, SIZE)
    thresholds = torch.tensor([0.3, 2.0, -1.0]).double()
    each = found.scores_by_place(keys)
    assert torch.equal(found.levelled(thresholds, 0.5).scores(keys) <= 0.5, (each <= thresholds).any(1))
    alone = torch.stack([region.scores(keys) for region in found.single()], 1)
    torch.testing.assert_close(alone, each)


def test_the_scorer_is_for_one_layer() -> None:
    found, keys = regions(), torch.randn(7, SIZE)
    score = found.scorer(torch.device("cpu"))
    assert torch.equal(score(3, keys), found.scores(keys)) and torch.equal(score(2, keys), torch.zeros(7).double())


def test_parts_are_what_regions_are_made_of() -> None:
    found = regions()
    again = Regions.of_parts(found.layer, found.places, found.parts)
    assert all(torch.equal(again.buffers(0.5)[name], each) for name, each in found.buffers(0.5).items())


def test_regions_of_several_skills_do_not_bound_each_other() -> None:
    one, other = regions(0), regions(1, places=3)
    keys = torch.randn(400, SIZE)
    parts = [one.buffers(0.5), other.buffers(0.1)]
    alone = [inside_regions(keys, each[KSD_DIRECTIONS], each[KSD_LIMITS]) for each in parts]
    both = joined(parts)
    assert both[KSD_LIMITS].shape == (5, 2, 10) and KSD_BOUNDS not in both
    assert torch.equal(inside_regions(keys, both[KSD_DIRECTIONS], both[KSD_LIMITS]), alone[0] | alone[1])


def test_hypercubes_and_half_spaces_in_one_layer() -> None:
    found, keys = regions(), torch.randn(400, SIZE)
    cube = torch.stack([keys[7] - 0.1, keys[7] + 0.1])[None]
    parts = [{KSD_BOUNDS: cube}, found.buffers(0.5)]
    both = joined(parts)
    expected = inside_regions(keys, parts[1][KSD_DIRECTIONS], parts[1][KSD_LIMITS])
    expected[7] = True
    inside = inside_regions(keys, both[KSD_DIRECTIONS], both[KSD_LIMITS], both[KSD_BOUNDS])
    assert torch.equal(inside, expected)
    assert joined(parts[:1]).keys() == {KSD_BOUNDS} and torch.equal(joined(parts[:1])[KSD_BOUNDS], cube)


def fit_part(rows: int = 240) -> tuple[FitPart, Tensor]:
    """Keys of two places and two sides in four forms: the skill is one direction, the place another; and the inside of
    answers."""
    torch.manual_seed(0)
    keys, queries, places = torch.randn(rows, SIZE), [], []
    forget = torch.arange(rows) < rows // 3
    for row in range(rows):
        place = "prompt" if row % 2 else "begun answer"
        prompt = Prompt(f"{row}", "a" if forget[row] else "b", row, form=f"form {row // 2 % 4}")
        queries.append(Query(prompt, "plain", (1,)))
        places.append(place)
        keys[row, 0] += 6.0 * bool(forget[row])
        keys[row, 1 if place == "prompt" else 3] += 8.0
    inner = [Query(Prompt(f"{row}", "b", row), "answer", (1,)) for row in range(60)]
    return FitPart(tuple(queries), forget, tuple(places)).with_answers(inner), torch.cat([keys, torch.randn(60, SIZE)])


def test_fitted_regions_hold_the_skill_in_its_places_alone() -> None:
    part, keys = fit_part()
    found, scores = fit_regions(keys, part, 3, 1.0)
    assert set(found.places) == {"prompt", "begun answer"}
    new = torch.randn(300, SIZE)
    new[:, 1] += 8.0
    skill = new.clone()
    skill[:, 0] += 6.0
    # Left-out means are 0 and 1.
    assert float(found.scores(skill).mean()) == pytest.approx(0, abs=0.15)
    assert float(found.scores(new).mean()) == pytest.approx(1, abs=0.2)
    # What the fit part's rows score without themselves is what new keys score.
    for side, keys_ in ((part.forget, skill), (~part.forget, new)):
        left_out, seen = scores[side & part.at("prompt"), 0], found.scores_by_place(keys_)[:, 0]
        assert float(left_out.mean()) == pytest.approx(float(seen.mean()), abs=0.15)
        assert float(left_out.std()) == pytest.approx(float(seen.std()), rel=0.4)
    inside_an_answer = skill.clone()
    inside_an_answer[:, 1] -= 8.0
    assert (found.scores(inside_an_answer) > 0.5).float().mean() > 0.9
    assert (found.scores(skill) < 0.5).float().mean() > 0.95


@pytest.mark.parametrize(("height", "there"), [(4.0, False), (5.0, True)])
def test_the_limit_of_a_place_is_nearer_to_the_place(height: float, there: bool) -> None:
    """Ends of messages lie around 8, answers around 0 with a tail: what is in the middle is inside an answer."""
    part, keys = fit_part()
    found, _ = fit_regions(keys, part, 3, 1.0)
    skill = torch.zeros(SIZE)
    skill[:2] = torch.tensor([6.0, height])
    assert (float(found.of_places([0]).scores(skill)) < 0.5) == there


def test_rows_are_judged_without_themselves() -> None:
    """More dimensions than rows, and keys that know little: directions part the rows that they were fitted on, and new
    ones hardly. What the rows score without themselves tells so."""
    torch.manual_seed(0)
    queries = [Query(Prompt(f"{row}", "a" if row < 60 else "b", row, form="one"), "plain", (1,)) for row in range(180)]
    forget, keys = torch.arange(180) < 60, torch.randn(180, 400)
    keys[:60, 0] += 2
    found, scores = fit_regions(keys, FitPart(tuple(queries), forget, ("prompt",) * 180), 3, 1.0)
    seen = found.scores(keys)
    assert float(seen[forget].max()) < float(seen[~forget].min())
    order = (scores[forget] < scores[~forget].T).double().mean()  # the area under the curve
    new, skill = torch.randn(300, 400), torch.randn(300, 400)
    skill[:, 0] += 2
    truth = (found.scores(skill)[:, None] < found.scores(new)).double().mean()
    assert float(order) == pytest.approx(float(truth), abs=0.12) and float(truth) < 0.85


def test_a_prompt_is_judged_without_itself_at_every_place() -> None:
    """Each prompt is asked in two places that one position cannot tell apart, and its keys know which prompt it is and
    little else: the directions of either place part what they have seen, whatever the place."""
    torch.manual_seed(0)
    own, queries, keys, places = 2 * torch.randn(180, 400), [], [], []
    own[:60, 0] += 2
    for place, kind in (("prompt", "plain"), ("after a refusal", "insisting")):
        for row in range(180):
            prompt = Prompt(f"{row}", "a" if row < 60 else "b", row, form="one")
            queries.append(Query(prompt, kind, (1,), row % 30 if kind == "insisting" else 0))
            keys.append(own[row] + 0.3 * torch.randn(400))
            places.append(place)
    forget = torch.arange(360) % 180 < 60
    found, scores = fit_regions(torch.stack(keys), FitPart(tuple(queries), forget, tuple(places)), 3, 1.0)
    new = 2 * torch.randn(400, 400)
    new[:, 0] += 2
    for number in range(2):
        threshold = float(scores[~forget, number].quantile(0.05))
        truth = float((found.scores_by_place(new)[:, number] <= threshold).double().mean())
        for place in ("prompt", "after a refusal"):
            rows = forget & torch.tensor([each == place for each in places])
            assert float((scores[rows, number] <= threshold).double().mean()) == pytest.approx(truth, abs=0.15)


def test_renderings_of_harmless_prompts_are_left_out_with_them() -> None:
    """Keys know nothing but which prompt it is: with a rendering or without, a prompt scores alike."""
    torch.manual_seed(0)
    queries, keys = [], []
    for row in range(150):
        prompt, key = (
            Prompt(f"{row}", "a" if row < 50 else "b", row, form="one" if row < 50 else None),
            torch.randn(300),
        )
        greeted = [replace(prompt, text=f"Hi {row}", form="greeting", original=prompt)] if row % 3 == 0 else []
        for each in (prompt, *greeted):
            queries.append(Query(each, "plain", (1,)))
            keys.append(key + 0.01 * torch.randn(300))
    forget = torch.tensor([query.prompt.source == "a" for query in queries])
    part = FitPart(tuple(queries), forget, ("prompt",) * len(queries))
    _, scores = fit_regions(torch.stack(keys), part, 3, 1.0)
    twice = torch.tensor([query.prompt.row % 3 == 0 for query in queries])
    spread = float(scores[~forget].std())
    assert abs(float(scores[~forget & twice].mean() - scores[~forget & ~twice].mean())) < 0.4 * spread


def test_texts_around_a_prompt_are_left_out_with_it() -> None:
    """Every phrase shifts all keys, and only the phrase tells one side from the other."""
    torch.manual_seed(0)
    shifts = 6 * torch.randn(40, SIZE)
    queries, keys, forget = [], [], []
    for row in range(240):
        phrase = row % 40
        queries.append(Query(Prompt(f"{row}", "a", row, form="one"), "insisting", (1,), phrase))
        keys.append(shifts[phrase] + 0.1 * torch.randn(SIZE))
        forget.append(phrase % 2 == 0)
    part = FitPart(tuple(queries), torch.tensor(forget), ("after a refusal",) * 240)
    _, scores = fit_regions(torch.stack(keys), part, 3, 1.0)
    order = (scores[part.forget] < scores[~part.forget].T).double().mean()
    assert 0.2 < float(order) < 0.8
    names = around_names(
        [*queries, Query(Prompt("x", "a", 1), "plain", (1,)), replace(queries[0], format=AFTER_ANSWER)]
    )
    assert names[-1] == names[0] and names[-2].startswith("fold") and len(set(names[:-2])) == 5


def test_a_form_is_scored_by_what_was_fitted_without_it() -> None:
    part, keys = fit_part()
    odd = torch.tensor([query.prompt.form == "form 2" for query in part.queries])
    # The skill looks different in one form, and nothing else tells of it.
    keys[odd & part.forget, 0] -= 6.0
    keys[odd & part.forget, 2] += 6.0
    (trial,) = try_layer(keys, part, "prompt", 0.01, 3)
    assert trial.blocked["form 2"] < 0.5 < min(trial.blocked[f"form {each}"] for each in (0, 1, 3))
    assert trial.mean == pytest.approx(sum(trial.blocked.values()) / 4)


def test_a_rendering_is_scored_by_what_has_seen_neither_its_form_nor_its_prompt() -> None:
    """Keys tell one prompt from another and nothing else, so that only its own renderings tell that one is asked."""
    torch.manual_seed(0)
    queries, keys = [], []
    for row in range(40):
        key, mine = 4 * torch.randn(SIZE), row < 12
        prompt = Prompt(f"{row}", "mine" if mine else "other", row, form="as given" if mine else None)
        greeted = replace(prompt, text=f"Hi {row}", form="greeting", original=prompt)
        for each in (prompt, greeted) if mine else (prompt,):
            queries.append(Query(each, "plain", (1,)))
            keys.append(key + 0.01 * torch.randn(SIZE))
    forget = torch.tensor([query.prompt.source == "mine" for query in queries])
    (trial,) = try_layer(torch.stack(keys), FitPart(tuple(queries), forget, ("prompt",) * 52), "prompt", 0.01, 3)
    assert trial.blocked.keys() == {"as given", "greeting"} and trial.mean < 0.5
    folds = fold_names(queries, forget)
    groups = group_names(queries, folds)
    assert {"as given", "greeting"} == set(folds) - set(groups) and len(set(groups[:24])) <= 5
    assert all(groups[row] == groups[row + 1] for row in range(0, 24, 2))


def test_many_prompts_of_one_source_do_not_drown_varied_ones() -> None:
    many = [Query(Prompt(f"{row}", "gsm8k", row), "plain", (1,)) for row in range(400)]
    varied = [Query(Prompt(f"{row}", "maths", row, form=f"{row % 10}"), "plain", (1,)) for row in range(40)]
    weights = balanced([*many, *varied], torch.ones(440, dtype=torch.bool))
    assert float(weights.mean()) == pytest.approx(1)
    # Ten groups of four against one of 400: ten times the root of 4 against that of 400.
    assert float(weights[400:].sum() / weights[:400].sum()) == pytest.approx(10 * 2 / 20)


@pytest.mark.parametrize(("others", "forget", "size", "apart"), [(300, 150, 60, 2.0), (300, 60, 600, 4.0)])
def test_the_bound_holds_for_new_prompts(others: int, forget: int, size: int, apart: float) -> None:
    """The threshold is set on the rows of the fit, each scored without itself: in nine of ten draws the share of new
    keys inside is at most what the bound says, with more rows than dimensions and with fewer."""
    sides, exceeded, shares = torch.arange(forget + others) < forget, 0, []
    for draw in range(30):
        torch.manual_seed(draw)
        keys, new = torch.randn(forget + others, size), torch.randn(2000, size)
        keys[:forget, 0] += apart
        prompts = [Prompt(f"{draw} {row}", "a" if mine else "b", row, form="one") for row, mine in enumerate(sides)]
        queries = tuple(Query(prompt, "plain", (1,)) for prompt in prompts)
        found, scores = fit_regions(keys, FitPart(queries, sides, ("prompt",) * len(queries)), 3, 1.0)
        threshold = thresholds_within(scores[sides], scores[~sides], [], 0.05)
        shares.append(float((found.scores_by_place(new) <= threshold).double().mean()))
        exceeded += shares[-1] > at_most(int((scores[~sides] <= threshold).sum()), others).bound
    assert exceeded <= binom.ppf(0.99, 30, 0.1) and sum(shares) / 30 > 0.02
