"""Scores, decisions and moved neurons against what they are by their definitions."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from custom_modeling.neuron_adjust import draw_context, neuron_key, uniform_draws
from exporter.cli.chat.answers import Answer, Sampling, answer
from exporter.cli.chat.conversation import Side
from exporter.common.errors import BadInput
from exporter.evaluation.why import Detector, detectors_of, watched
from exporter.methods.key_space.hypercubes import KeySpace
from exporter.methods.moments import Gaussian
from exporter.models.loading import LoadedModel, load_checkpoint
from tests.exporter.cli.chat.conftest import SONG, SONGS, SUMS, side_of
from tests.tiny import FORGET, RETAIN, Exported, one_thread

GREEDY = Sampling(12, 0.0, 0)


def prompts() -> list[str]:
    """Prompts of both skills and of none, whole and in pieces, and noise."""
    drawn = random.Random(0)
    texts = [*drawn.sample(FORGET, 12), *drawn.sample(SONGS, 12), *drawn.sample(RETAIN, 12), "hello", "Zoë 漢字 🙂"]
    texts += [text[: drawn.randrange(5, len(text))] for text in drawn.sample(FORGET + SONGS, 12)]
    texts += ["".join(chr(drawn.randrange(33, 0x250)) for _ in range(drawn.randrange(1, 40))) for _ in range(12)]
    return texts


def ask(side: Side, prompt: str, sampling: Sampling = GREEDY) -> tuple[tuple[int, ...], Answer]:
    ids = side.formatter.render(prompt)
    with one_thread():
        return ids, answer(side.loaded, ids, sampling, lambda piece: None, detectors=side.detectors)


def written(loaded: LoadedModel, ids: tuple[int, ...]) -> list[int]:
    """The tokens of the same greedy answer, by generate() as anyone calls it."""
    inputs = loaded.pad([ids], "left")
    with one_thread(), torch.inference_mode():
        output = loaded.model.generate(**inputs, max_new_tokens=GREEDY.max_new_tokens, do_sample=False)
    return output[0, len(ids) :].tolist()


@contextmanager
def captured(module: Any, before: bool = False) -> Iterator[list[torch.Tensor]]:
    """What a module is given (before), or gives, in every forward."""
    found: list[torch.Tensor] = []
    if before:
        handle = module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].clone()))
    else:
        handle = module.register_forward_hook(lambda _, inputs, output: found.append(output.clone()))
    yield found
    handle.remove()


@pytest.mark.slow
def test_scores_are_those_of_the_stored_statistics(edited: LoadedModel, checkpoint: Path) -> None:
    side = side_of(edited)
    stored = load_file(checkpoint / "reproduce" / "statistics.safetensors")
    records = {skill["name"]: skill for skill in edited.settings["skills"]}
    projection = edited.model.model.layers[1].mlp.down_proj
    for prompt in prompts():
        ids, _ = ask(side, prompt)
        with one_thread(), torch.inference_mode(), captured(projection, before=True) as keys:
            edited.model(**edited.pad([ids], "left"))
        key = keys[0][0, -1].double().numpy()
        _, said = ask(side, prompt)
        assert [each.skill for each in said.verdicts] == [SUMS, SONG]
        for verdict in said.verdicts:
            cubes = [
                (stored[f"{verdict.skill}.ksd.{name}.mean"][1], stored[f"{verdict.skill}.ksd.{name}.deviation"][1])
                for name in records[verdict.skill]["formats"]
            ]
            expected = min(np.max(np.abs(key - mean) / deviation) for mean, deviation in cubes)
            assert verdict.score == pytest.approx(expected, rel=1e-4)
            assert verdict.alpha == records[verdict.skill]["alpha"]["value"]
            assert (verdict.blocked_after == 0) == (expected <= verdict.alpha)


def test_both_skills_are_blocked_by_their_own_hypercubes(edited: LoadedModel) -> None:
    side = side_of(edited)
    for prompt, own in ((FORGET[3], SUMS), (SONGS[3], SONG)):
        _, said = ask(side, prompt)
        assert {each.skill: each.blocked_after for each in said.verdicts} == {SUMS: None, SONG: None} | {own: 0}
        assert said.text == "Your query is not valid" and said.blocked_after == 0 and said.tokens == 0


def widened(checkpoint: Path, factor: float) -> LoadedModel:
    """The checkpoint with larger hypercubes, which answers run into now and then."""
    loaded = load_checkpoint(str(checkpoint), "auto", "cpu")
    bounds = loaded.model.model.layers[1].mlp.unskill_ksd_bounds
    centre = bounds.mean(1, keepdim=True)
    bounds.copy_(centre + factor * (bounds - centre))
    return loaded


@pytest.mark.slow
def test_what_is_said_to_be_blocked_is_where_R_stands(edited: LoadedModel, checkpoint: Path) -> None:
    """In all answers, those too that are blocked in their middle."""
    at = set()
    for loaded in (edited, widened(checkpoint, 2.0)):
        side = side_of(loaded)
        for prompt in prompts():
            ids, said = ask(side, prompt)
            tokens = written(loaded, ids)
            place = tokens.index(loaded.refusal_id) if loaded.refusal_id in tokens else None
            assert said.blocked_after == place
            assert said.text == loaded.tokenizer.decode(tokens, skip_special_tokens=True)
            assert place is None or said.tokens == place
            at.add(place)
    assert {None, 0} < at, "no answer was blocked in its middle"


def test_moved_neurons_are_those_of_the_formula(edited: LoadedModel) -> None:
    """d and u by section 3 of the paper in float64, at every position that a token was written from."""
    side, seed = side_of(edited), edited.settings["seed"]
    layers = edited.model.model.layers
    for prompt in ("hello", RETAIN[5], FORGET[0], "Tell me about Tom"):
        ids, said = ask(side, prompt)
        tokens = written(edited, ids)
        whole = torch.tensor([[*ids, *tokens[: said.moved.positions - 1]]])
        count, ever, selected = 0, 0, 0
        for layer, module in enumerate(layers):
            index = module.mlp._buffers.get("unskill_na_index")
            if index is None:
                continue
            with one_thread(), torch.inference_mode(), captured(module.mlp.gate_proj) as values:
                edited.model(whole)
            v = values[0][0, len(ids) - 1 :, index].double()
            mu_f, sd_f, mu_r, sd_r = module.mlp.unskill_na_params.double()
            zf, zr = (v - mu_f) / sd_f, (v - mu_r) / sd_r
            d = (zr**2 - zf**2) / 2 + torch.log(sd_r / sd_f)
            places = torch.arange(whole.shape[1])[len(ids) - 1 :]
            keys = torch.tensor([neuron_key(seed, layer, int(neuron)) for neuron in index])
            u = uniform_draws(draw_context(places, whole[0, len(ids) - 1 :]), keys)
            moved = (d > 0) & (u < torch.sigmoid(d))
            count, ever, selected = count + int(moved.sum()), ever + int(moved.any(0).sum()), selected + len(index)
        assert (said.moved.selected, said.moved.ever, said.moved.moves) == (selected, ever, count)
        assert said.moved.positions == said.tokens + (said.ended == "stop")


@pytest.mark.parametrize("method", ["na", "sp"])
def test_nothing_is_refused_without_hypercubes(tiny: Callable[..., Exported], method: str) -> None:
    loaded = load_checkpoint(str(tiny("llama", method).checkpoint), "auto", "cpu")
    _, said = ask(side_of(loaded), FORGET[0])
    assert said.verdicts == [] and said.blocked_after is None
    assert (said.moved is not None) == (method == "na")


def test_hooks_are_gone_after_an_answer_and_after_an_error(edited: LoadedModel) -> None:
    ask(side_of(edited), "hello")
    with pytest.raises(ZeroDivisionError), watched(edited, detectors_of(edited)):
        raise ZeroDivisionError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in edited.model.modules())


@given(st.integers(0, 2**31), st.floats(0.5, 40), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_score_of_any_key_and_hypercubes(seed: int, alpha: float, cubes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    fits = tuple(
        Gaussian(
            9, torch.randn(1, 16, generator=generator).double(), torch.rand(1, 16, generator=generator).double() + 0.01
        )
        for _ in range(cubes)
    )
    space = KeySpace(tuple("abc"[:cubes]), fits)
    detector = Detector("skill", 0, alpha, space.bounds(0, alpha))
    key = fits[0].mean[0] + alpha * 1.2 * fits[0].deviation[0] * (2 * torch.rand(16, generator=generator) - 1)
    key = key.float()
    expected = float(space.scores(key[None])[0])
    assert detector.score(key) == pytest.approx(expected, rel=1e-4)
    assert detector.blocks(key) == (expected <= alpha) or expected == pytest.approx(alpha, rel=1e-4)


def test_a_nan_is_not_outside() -> None:
    bounds = torch.tensor([[[-1.0, -1.0], [1.0, 1.0]]])
    detector = Detector("skill", 0, 2.0, bounds)
    for values, blocked in (((torch.nan, 0.5), True), ((torch.nan, 3.0), False), ((torch.inf, 0.0), False)):
        key = torch.tensor(values)
        assert detector.blocks(key) is blocked
        assert (detector.score(key) <= 2.0) is blocked
        json.dumps(detector.score(key), allow_nan=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda skills: skills[0].pop("formats"),
        lambda skills: skills[0].update(formats=["plain", "system"]),
        lambda skills: skills[0].update(layer=7),
        lambda skills: skills[0].update(layer=0),
        lambda skills: skills[1].update(alpha="wide"),
        lambda skills: skills.pop(1),
        lambda skills: skills.insert(0, "maths"),
    ],
)
def test_skills_that_do_not_fit_the_hypercubes(edited: LoadedModel, change: Callable[[list[Any]], Any]) -> None:
    config = json.loads(json.dumps(edited.files.config))
    change(config["unskill"]["skills"])
    with pytest.raises(BadInput, match=r"config\.json"):
        detectors_of(replace(edited, files=replace(edited.files, config=config)))
