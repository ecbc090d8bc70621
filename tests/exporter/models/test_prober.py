"""Keys that are read from the forward of a longer query are those of a forward of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.models.families import FAMILIES
from exporter.models.files import find_base
from exporter.models.loading import load
from exporter.models.prefixes import GROUP_COST, begun_by, shared_prefixes
from exporter.models.prober import Prober
from exporter.prompts.formats import Query
from exporter.prompts.sources import Prompt
from tests.tiny import one_thread, tiny_model


def queries(*ids: tuple[int, ...]) -> list[Query]:
    return [Query(Prompt(str(row), "source", row), "plain", each) for row, each in enumerate(ids)]


def test_queries_are_grouped_under_one_that_they_begin() -> None:
    asked = queries((1, 2), (1, 2, 3), (4,), (1, 2, 5), (1, 2, 3), (1, 2, 3, 9), (2, 1))
    groups = begun_by(asked)
    assert sorted(row for rows in groups.values() for row in rows) == list(range(7))
    for own, rows in groups.items():
        assert all(asked[own].ids[: len(asked[row].ids)] == asked[row].ids for row in rows)
    # (1, 2) begins two of them, and is read from one.
    assert len(groups) == 4 and begun_by([]) == {}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=60).map(tuple), unique=True, max_size=12), st.data())
def test_rows_are_grouped_by_a_prefix_that_saves_tokens(ids: list[tuple[int, ...]], data: st.DataObject) -> None:
    least = [data.draw(st.integers(1, len(each))) for each in ids]
    groups = shared_prefixes(ids, least)
    assert sorted(row for _, rows in groups for row in rows) == list(range(len(ids)))
    for length, rows in groups:
        assert len({ids[row][:length] for row in rows}) == 1 and all(length < least[row] for row in rows)
        assert not length or (len(rows) - 1) * length > GROUP_COST


def test_a_prefix_is_that_of_the_system_prompt_where_several_share_it() -> None:
    systems = [tuple(range(start, start + 40)) for start in (100, 200)]
    ids = [(*system, *range(row, row + 5)) for system in systems for row in range(6)]
    groups = shared_prefixes(ids, [len(each) for each in ids])
    assert sorted(groups) == [(40, [0, 1, 2, 3, 4, 5]), (40, [6, 7, 8, 9, 10, 11])]


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_behind_a_shared_prefix_are_those_of_a_forward_of_its_own(tmp_path: Path, family: str) -> None:
    prober = Prober(load(find_base(str(tiny_model(tmp_path / "base", family))), "float32", "cpu"))
    torch.manual_seed(0)
    shared = torch.randint(5, 300, (80,)).tolist()  # longer than the window of those that have one
    ends = [torch.randint(5, 300, (length,)).tolist() for length in (3, 9, 1, 5)]
    asked = queries(*((*shared, *end) for end in ends), (*shared, *ends[1][:4]), (9, 8, 7))
    with one_thread():
        found = {}
        for rows, keys in prober.last_token_keys(asked, "keys"):
            found |= dict(zip(rows, keys, strict=True))
        for row, query in enumerate(asked):
            ((_, alone),) = prober.last_token_keys([query], "keys")
            torch.testing.assert_close(found[row], alone[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layer", [None, 1])
def test_their_keys_are_the_same(tmp_path: Path, layer: int | None) -> None:
    prober = Prober(load(find_base(str(tiny_model(tmp_path / "base"))), "float32", "cpu"))
    torch.manual_seed(0)
    long = torch.randint(5, 300, (3, 20)).tolist()
    asked = queries(*(tuple(ids[:length]) for ids in long for length in (20, 7, 13)), (9, 8, 7))
    found = torch.zeros(len(asked), 3 if layer is None else 1, 64)
    with one_thread():
        for rows, keys in prober.last_token_keys(asked, "keys", layer):
            found[rows] = keys
        for row, query in enumerate(asked):
            ((_, alone),) = prober.last_token_keys([query], "keys", layer)
            torch.testing.assert_close(found[row], alone[0], rtol=1e-4, atol=1e-5)


def test_answers_are_greedy_and_end_before_the_end_token(tmp_path: Path) -> None:
    prober = Prober(load(find_base(str(tiny_model(tmp_path / "base"))), "float32", "cpu"))
    asked = queries((9, 8, 7, 30), (40, 50), (9, 8, 7))
    with one_thread():
        answers = prober.answers(asked, 12, "answers")
        for query, answer in zip(asked, answers, strict=True):
            ids = list(query.ids)
            for token in answer:
                logits = prober.logits(prober.pad([Query(query.prompt, "plain", tuple(ids))]))[0, -1]
                assert int(logits.argmax()) == token
                ids.append(token)
            assert len(answer) <= 12
