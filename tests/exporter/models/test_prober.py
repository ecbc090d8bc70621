"""Keys that are read from the forward of a longer query are those of a forward of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from exporter.models.files import find_base
from exporter.models.loading import load
from exporter.models.prober import Prober, begun_by
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
