"""What words alone tell: everything where both sides have words of their own, nothing where they share them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from exporter.methods.key_space.words import Vectors, terms, words_only
from exporter.prompts.formats import PLAIN, Query
from exporter.prompts.region_parts import Part, RegionParts
from exporter.prompts.sources import Prompt
from exporter.recipes.effort import EFFORTS
from exporter.recipes.settings import SkillSettings

NOUNS = ("garden", "letter", "bridge", "violin", "teapot", "harbour", "carpet", "pencil", "meadow", "lantern")
SUMS = ("plus", "minus", "times", "divided", "percent")
TALK = ("lovely", "famous", "broken", "ancient", "yellow")


def part(seed: int, own: tuple[str, ...], others: tuple[str, ...]) -> Part:
    draw = random.Random(seed)

    def queries(words: tuple[str, ...], source: str) -> tuple[Query, ...]:
        texts = [" ".join([draw.choice(NOUNS), draw.choice(words), *draw.choices(NOUNS, k=4)]) for _ in range(60)]
        prompts = [Prompt(f"{text} {row}", source, row) for row, text in enumerate(texts)]
        return tuple(Query(prompt, PLAIN, (1,)) for prompt in prompts)

    return Part(queries(own, "maths"), queries(others, "retain"), ())


@pytest.mark.parametrize(("others", "low", "high"), [(TALK, 0.95, 1.0), (SUMS, 0.0, 0.2)])
def test_words_tell_what_they_differ_in(others: tuple[str, ...], low: float, high: float) -> None:
    parts = RegionParts(*(part(seed, SUMS, others) for seed in range(2)), {PLAIN: "prompt"}, EFFORTS["quick"])
    found = words_only(parts, SkillSettings(forget=("maths.jsonl",)))
    assert found.total == 60 and low <= found.rate <= high


def test_vectors_are_of_terms_that_were_seen() -> None:
    vectors = Vectors(["a red bridge", "a red carpet", "a violin"])
    np.testing.assert_allclose((vectors.rows @ vectors.rows.T).toarray().diagonal(), 1)
    one, other, strange = vectors.of(["A RED bridge", "violin", "qqq"]).toarray()
    np.testing.assert_allclose(one, vectors.rows.toarray()[0])
    assert one @ other == pytest.approx(0, abs=0.1) and not strange.any()


def test_terms_are_words_and_runs_within_words() -> None:
    found = terms("2 red, 2")
    assert found["2"] == 2 and found["red"] == 2 and found[","] == found[" red"] == found["red "] == 1
    assert " red " in found and "d ," not in found and found["ed "] == 1
