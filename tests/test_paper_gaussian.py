"""examples/paper/gaussian.py: its statistics on samples that are known, and the whole on a tiny model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.paper.distributions import (
    decisions,
    distances,
    distances_between,
    expected_agreement,
    looks_forgotten,
    looks_forgotten_by_histogram,
    shape,
)
from exporter.common.errors import BadInput
from exporter.evaluation.items import sample
from exporter.prompts.packaged import everyday_prompts
from exporter.prompts.sources import Prompt
from tests.paper_runs import found, invoke
from tests.tiny import FORGET, RETAIN, tiny_model, write_prompts

pytestmark = pytest.mark.slow

RECIPE = """
experiment = "gaussian"
title = "tiny"
model = "none"
pairs = [["one", "two"], ["stories", "two"]]
fit = 12
test = 8
neurons = 20
answer_tokens = 5
[sides]
one = "forget.jsonl,column=prompt"
two = "retain.jsonl,column=prompt"
[answered]
stories = ["story"]
"""


def test_distances_are_the_greatest_gap_of_two_distributions() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(3, 2, 50), rng.exponential(1, 50), np.arange(50.0)], 1)
    mean, deviation = np.array([3.0, 1.0, 24.5]), np.array([2.0, 1.0, 14.4])

    def gap(column: np.ndarray, cdf: Any) -> float:
        ordered = np.sort(column)
        return max(max((k + 1) / len(ordered) - cdf(x), cdf(x) - k / len(ordered)) for k, x in enumerate(ordered))

    expected = [
        gap(c, lambda x, m=m, s=s: ndtr((x - m) / s)) for c, m, s in zip(values.T, mean, deviation, strict=True)
    ]
    assert distances(values, mean, deviation) == pytest.approx(expected)
    # Half of one lies below all of the other, and the rest above.
    assert distances_between(np.array([[1.0], [2.0], [8.0], [9.0]]), np.array([[4.0], [5.0]])) == pytest.approx([0.5])
    found = shape(values[:30], values[30:], mean, deviation)
    assert found["distance"] == pytest.approx(distances(values[30:], mean, deviation))
    own = values[:30].mean(0), values[:30].std(0, ddof=1)
    assert found["distance_refitted"] == pytest.approx(distances(values[30:], *own))
    # Of equally spaced values: no skewness, and the excess kurtosis of a uniform distribution, about -1.2.
    assert found["skewness"][2] == pytest.approx(0, abs=1e-9) and found["kurtosis"][2] == pytest.approx(-1.2, abs=0.02)


def test_what_looks_forgotten_is_what_has_the_greater_density() -> None:
    params = torch.tensor([[1.0, 0.0], [1.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])  # mu_f, sd_f, mu_r, sd_r
    values = np.linspace(-6, 6, 41)[:, None].repeat(2, 1)
    forget, retain = (
        np.exp(-(((values - params[at].numpy()) / params[at + 1].numpy()) ** 2) / 2) / params[at + 1].numpy()
        for at in (0, 2)
    )
    clear = np.abs(np.log(forget / retain)) > 1e-3
    flags = looks_forgotten(values, params)
    assert (flags == (forget > retain))[clear].all() and clear.sum() > 70
    # The second neuron's forget texts are on both sides of its retain texts, which one threshold could not tell.
    assert flags[0, 1] and not flags[20, 1] and flags[-1, 1]


def test_histograms_agree_with_gaussians_where_values_are_gaussian() -> None:
    rng = np.random.default_rng(1)
    params = torch.tensor([[1.0], [1.0], [-1.0], [1.0]])

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(1, 1, (count, 1)), rng.normal(-1, 1, (count, 1))

    said = decisions(drawn(4000), drawn(4000), params)
    # The best that can be is Phi(1) = 84 %: the means are two deviations apart.
    for name in ("right_gaussian", "right_histogram"):
        assert said[name] == pytest.approx([ndtr(1.0)], abs=0.02)
    assert said["agree"][0] > 0.95
    assert expected_agreement(drawn(4000), drawn(4000), params, 0) == pytest.approx(said["agree"], abs=0.04)
    # Where values have two peaks on the forget side, histograms see it and Gaussians of the same moments do not.
    signs = np.sign(rng.normal(size=(4000, 1)))
    forget, retain = 2 * signs + rng.normal(0, 0.1, (4000, 1)), rng.normal(0, 2, (4000, 1))
    alike = torch.tensor([[0.0], [2.0], [0.0], [2.0001]])
    peaks = decisions((forget, retain), (forget, retain), alike)
    assert peaks["right_histogram"][0] > 0.9 > 0.6 > peaks["right_gaussian"][0]
    assert peaks["agree"][0] < 0.6
    assert looks_forgotten_by_histogram(np.array([[2.0], [0.0]]), forget, retain).tolist() == [[True], [False]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gaussian")
    tiny_model(folder / "tiny", chat=True, max_position_embeddings=2048)
    write_prompts(folder / "forget.jsonl", FORGET)
    write_prompts(folder / "retain.jsonl", RETAIN)
    return folder


def flags(place: Path) -> tuple[str, str]:
    return "--model", str(place / "tiny")


def test_a_pair_is_measured_as_by_hand(place: Path) -> None:
    pairs = found(place, RECIPE, *flags(place))["pairs"]
    assert [pair["pair"] for pair in pairs] == [["one", "two"], ["stories", "two"]]
    groups = pairs[0]["groups"]
    thirds = ["first third (0-0)", "middle third (1-1)", "last third (2-2)"]
    assert list(groups) == [*thirds, "all", "all, the tenth that parts the texts most"]
    assert [groups[name]["neurons"] for name in groups] == [20, 20, 20, 60, 6]
    model = AutoModelForCausalLM.from_pretrained(place / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(place / "tiny")
    for layer, name in enumerate(thirds):
        index = places(layer)
        for label, prompts in (("forget", FORGET), ("retain", RETAIN)):
            # Which texts are of which part is the same for every neuron: all splits of 20 are by digest.
            fit, test = parts(prompts, f"{label}.jsonl")
            values = [by_hand(model, tokenizer, texts, layer)[:, index] for texts in (fit, test)]
            whole = by_hand(model, tokenizer, fit, layer, first=True)[:, index]
            expected = shape(values[0], values[1], whole.mean(0), whole.std(0, ddof=1))
            for key, each in expected.items():
                assert groups[name][f"{label} {key}"] == pytest.approx(np.median(each), rel=1e-3, abs=1e-5), key
    everything = groups["all"]
    assert all(0 <= everything[name] <= 1 for name in ("agree", "agree_expected", "right_gaussian", "right_histogram"))
    assert everything["right_histogram"] > 0.5


def places(layer: int) -> list[int]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randperm(64, generator=draw)[:20].sort().values.tolist() for _ in range(3)][layer]


def parts(prompts: list[str], source: str) -> tuple[list[str], list[str]]:
    chosen = sample([Prompt(text, source, row) for row, text in enumerate(prompts, start=1)], 20, 0)
    ordered = [prompt.text for prompt in sorted(chosen, key=lambda prompt: prompt.sha256)]
    return ordered[:12], ordered[12:]


def by_hand(model: Any, tokenizer: Any, texts: list[str], layer: int, *, first: bool = False) -> np.ndarray:
    """Pre-activations of one layer at every token of the texts, one text at a time; `first`: position 0 too."""
    seen: list[np.ndarray] = []
    tap = model.model.layers[layer].mlp.gate_proj.register_forward_hook(
        lambda module, inputs, output: seen.append(output[0, 0 if first else 1 :].double().numpy())
    )
    with torch.no_grad():
        for text in texts:
            model(**tokenizer(text, return_tensors="pt"))
    tap.remove()
    return np.concatenate(seen)


def test_packaged_prompts_are_looked_at_with_the_models_own_answers(place: Path) -> None:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(place / "tiny"),
        AutoTokenizer.from_pretrained(place / "tiny"),
    )
    stories = [prompt for prompt in everyday_prompts() if prompt.kind == "story"]
    lengths = []
    for prompt in sorted(sample(stories, 20, 0), key=lambda prompt: prompt.sha256):
        asked = [{"role": "user", "content": prompt.text}]
        inputs = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)
        answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        lengths.append(min(384, len(tokenizer(f"{prompt.text}\n{answer}")["input_ids"])))
    fit, test = sum(lengths[:12]), sum(lengths[12:]) - 8
    invoke(place, RECIPE, *flags(place))
    text = (place / "out" / "tables.md").read_text(encoding="utf-8")
    assert f"stories: 12 texts fitted ({fit} tokens), 8 tested ({test} tokens)" in text
    assert any(length < 384 for length in lengths)


def test_no_text_is_written_and_a_second_run_is_the_same(place: Path) -> None:
    once = found(place, RECIPE, *flags(place))
    assert found(place, RECIPE, *flags(place)) == once
    assert found(place, RECIPE, *flags(place), "--seed", "1") != once
    written = {path.name for path in (place / "out").iterdir()}
    assert written == {"results.json", "tables.md", "gaussian-0.png", "gaussian-1.png"}
    files = "".join((place / "out" / name).read_text(encoding="utf-8") for name in ("results.json", "tables.md"))
    stories = [prompt.text for prompt in everyday_prompts() if prompt.kind == "story"]
    assert not any(text[:25] in files for text in [*FORGET, *RETAIN, *stories, str(place)])
    assert not math.isnan(once["pairs"][1]["groups"]["all"]["forget distance"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (('"one", "two"', '"one", "three"'), r"^pairs: 'three' must be a name of sides or of answered"),
        (("stories = [", "one = ["), r"^pairs: 'one' must be a name of sides or of answered, and of one alone"),
        (('["story"]', '["tale"]'), r"^answered.stories: no kind 'tale'; there are advice, "),
        (("forget.jsonl", "nothing.jsonl"), r"^sides.one: no such file"),
        (("column=prompt", "column=prompt,limit=3"), r"^pairs: 3 texts of 'one' are too few"),
        (('[["one", "two"], ["stories", "two"]]', "[]"), r"pairs: Tuple should have at least 1 item"),
    ],
)
def test_bad_recipes_are_one_line(place: Path, change: tuple[str, str], expected: str) -> None:
    with pytest.raises(BadInput, match=expected) as raised:
        invoke(place, RECIPE.replace(*change), *flags(place))
    assert "\n" not in str(raised.value)
