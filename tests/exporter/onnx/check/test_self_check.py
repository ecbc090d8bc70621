"""The comparison itself: what it counts, and what it leaves out and says so."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from exporter.onnx.check.runners import Recorded, Session, Torch, opened_graph, opened_model
from exporter.onnx.check.self_check import SOME, Row, Step, agree, cases, compare, halfway, in_steps, whole
from tests.exporter.onnx.conftest import Written

pytestmark = pytest.mark.slow

R = 3


class Fixed:
    """A side with given logits, and as many close decisions a row, of all and of hypercubes, as given."""

    def __init__(self, logits: np.ndarray, close: list[int] | None = None, edge: list[int] | None = None) -> None:
        self.logits = logits
        self.close, self.edge = (np.array(each or [0] * len(logits)) for each in (close, edge))

    def forward(self, ids: Any, mask: Any = None, past: Any = None) -> Any:
        return self.logits, None


def compared(
    changed: tuple[int, int, int, float], close: list[int], dtype: str = "float32", edge: list[int] | None = None
) -> Row:
    """Sequences of 2, 3 and 3 tokens, left-padded, one logit of which is another on our side."""
    logits = np.arange(36, dtype=np.float32).reshape(3, 3, 4) % 7
    logits[..., R] = -1e4
    ours = logits.copy()
    ours[changed[:3]] = changed[3]
    theirs: Any = Fixed(logits, close, edge)
    return compare("case", "bodies", theirs, Fixed(ours), [[whole([[1, 2], [1, 2, 3], [4, 5, 6]], 0)]], R, dtype)


def test_pads_are_not_compared() -> None:
    row = compared((0, 0, 1, 99.0), [0, 0, 0])
    assert (row.sequences, row.positions, row.difference, row.close) == (3, 8, 0.0, 0) and agree([row], "float32")


def test_a_difference_is_one_unless_a_decision_is_close() -> None:
    row = compared((1, 2, 1, 99.0), [3, 0, 0])
    assert row.difference > 90 and row.argmax == 7 and not agree([row], "float32")
    row = compared((1, 2, 1, 99.0), [0, 3, 0])
    assert (row.close, row.positions, row.difference) == (1, 5, 0.0) and agree([row], "float32")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 50, 51])
def test_halfway_is_on_no_key_and_amid_them(count: int) -> None:
    greatest = np.random.default_rng(count).lognormal(size=(1, count)).astype(np.float32)
    inside = int((greatest <= halfway(greatest)).sum())
    assert count // 4 - 1 <= inside <= 3 * count // 4 + 1
    assert (np.abs(greatest - halfway(greatest)) > 0).all()


def test_few_refusals_amid_keys_may_differ_in_float16() -> None:
    row = Row(SOME, "bodies", 4, 100, 0.0, 100, 95, 0)
    assert agree([row], "float16") and not agree([replace(row, refusals=94)], "float16")
    assert not agree([row], "float32") and not agree([replace(row, case="another")], "float16")


def test_close_decisions_excuse_less_than_half() -> None:
    row = Row("case", "bodies", 4, 10, 0.0, 10, 10, 2)
    assert not agree([row], "float32") and agree([replace(row, close=1)], "float32")


def test_a_refusal_on_one_side_only_fails_in_every_dtype() -> None:
    for dtype in ("float32", "float16"):
        row = compared((1, 2, R, 0.0), [0, 0, 0], dtype)
        assert row.refusals == row.positions - 1 and not agree([row], dtype)


def test_a_close_neuron_excuses_no_refusal() -> None:
    """Or a graph that refuses everything, or nothing, would agree wherever neurons are adjusted."""
    for dtype in ("float32", "float16"):
        row = compared((1, 2, R, 0.0), [0, 3, 0], dtype)
        assert (row.close, row.refusals) == (0, row.positions - 1) and not agree([row], dtype)
        row = compared((1, 2, R, 0.0), [0, 3, 0], dtype, edge=[0, 1, 0])
        assert (row.close, row.positions) == (1, 5) and agree([row], dtype)
        row = compared((1, 2, R, 0.0), [3, 0, 0], dtype, edge=[1, 1, 0])
        assert row.close == 0 and not agree([row], dtype)


def test_nan_never_agrees() -> None:
    for dtype in ("float32", "float16"):
        assert not agree([compared((1, 2, 0, np.nan), [0, 0, 0], dtype)], dtype)
        assert not agree([compared((1, 2, 0, np.nan), [0, 1, 0], dtype, edge=[0, 1, 0])], dtype)


def test_float16_may_choose_another_token_here_and_there() -> None:
    row = Row("case", "bodies", 1, 100, 0.5, 95, 100, 0)
    assert agree([row], "float16") and not agree([replace(row, argmax=94)], "float16") and not agree([row], "float32")


def test_steps_go_on_where_the_last_one_ended() -> None:
    steps = in_steps(range(10, 17))
    assert np.concatenate([step.ids[0] for step in steps]).tolist() == list(range(10, 17))
    assert [step.mask.shape[1] for step in steps] == np.cumsum([step.ids.shape[1] for step in steps]).tolist()
    assert [step.ids.shape[1] for step in steps] == [3, 1, 1, 1, 1]
    assert len(in_steps([5])) == 1 and isinstance(in_steps([5])[0], Step)


def test_what_was_recorded_comes_again_without_the_model(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    ids = np.zeros((2, 3), np.int64)
    with (tmp_path / "file").open("x+b") as file:
        recorded = Recorded(file)
        for times in (1, 2):
            fixed: Any = Fixed(times * logits, [times, 0], [0, times])
            recorded.record(fixed, ids, np.ones_like(ids))
        for _ in range(2):
            recorded.rewind()
            for times in (1, 2):
                assert np.array_equal(recorded.forward(ids)[0], times * logits)
                assert (recorded.close.tolist(), recorded.edge.tolist()) == ([times, 0], [0, times])


def files(folder: Path) -> list[tuple[str, int]]:
    """All files of a folder, with the times at which they were written."""
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_opened_hypercubes_are_closed_again(written: Callable[..., Written]) -> None:
    exported, folder, _ = written()
    model = AutoModelForCausalLM.from_pretrained(exported.checkpoint, trust_remote_code=True)
    path: Path = folder / "onnx" / "model.onnx"
    listed = files(folder)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    opened = opened_graph(path)
    with opened_model(model):
        refusal = model.config.unskill["refusal_token_id"]
        for side in (Torch(model), Session(path, changed=opened)):
            logits = side.forward(np.array([[5, 6, 7]]))[0]
            assert (logits.argmax(-1) == refusal).all()
    torch_side, ids = Torch(model), np.array([[5, 6, 7, 8, 9, 10]])
    torch_side.forward(ids)
    within = [halfway(each) for each in torch_side.greatest]
    opened = opened_graph(path, within)
    with opened_model(model, within):
        for side in (torch_side, Session(path, changed=opened)):
            refused = side.forward(ids)[0].argmax(-1) == refusal
            assert refused.tolist() == (torch_side.greatest[0] <= within[0]).tolist() and 0 < refused.sum() < 6
    assert files(folder) == listed
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers() if "bounds" in name)


def test_close_decisions_are_counted(written: Callable[..., Written]) -> None:
    """A neuron whose log-likelihood ratio is put onto its threshold, and a key onto a hypercube's face."""
    exported, _, _ = written()
    model = AutoModelForCausalLM.from_pretrained(exported.checkpoint, trust_remote_code=True)
    side, ids = Torch(model), np.array([[5, 6, 7, 8]])
    side.forward(ids)
    assert (side.close.tolist(), side.edge.tolist()) == ([0], [0])
    with torch.no_grad():
        for name, tensor in model.named_buffers():
            if name.endswith("layers.0.mlp.unskill_na_params"):
                tensor[1:4:2] = tensor[1:2]  # equal deviations and means: both ratio and threshold are 0 if u < 1/2
                tensor[2] = tensor[0]
    side.forward(ids)
    assert side.close.tolist()[0] > 0 and side.edge.tolist() == [0]
    bounds = next(tensor for name, tensor in model.named_buffers() if name.endswith("unskill_ksd_bounds"))
    keys = []
    runtime = sys.modules[type(model).__module__]
    with mock.patch.object(runtime, "inside_hypercubes", lambda key, _: keys.append(key) or key[..., 0] > 0):
        model(torch.from_numpy(ids))
    greatest = keys[0][0, -1].abs().max()
    bounds[:, 0], bounds[:, 1] = -1.01 * greatest, 1.01 * greatest
    side.forward(ids)
    assert side.edge.tolist()[0] > 0


def test_batch_takes_no_more_logits_at_once_than_the_longest_prompt() -> None:
    """Its parts are the batch again, also where a row's first part is all padding."""
    sequences = [range(10, 10 + count) for count in (9, 2, 7, 3, 5)]
    runs = dict(cases(sequences, 0, None))["left-padded batch"]
    pairs = [sequences[::3], sequences[1::3], sequences[2::3]]
    assert max(step.ids.size for parts in runs for step in parts) <= 9
    for parts, pair in zip(runs, pairs, strict=True):
        batch = whole(pair, 0)
        assert np.concatenate([step.ids for step in parts], 1).tolist() == batch.ids.tolist()
        assert parts[-1].mask.tolist() == batch.mask.tolist()
    assert not runs[0][0].mask[1].any() and [step.mask.shape[1] for step in runs[0]] == [4, 8, 9]


@pytest.mark.parametrize("count", [2, 4, 5, 8])
def test_batch_has_pads(count: int) -> None:
    sequences = [range(10, 13 + each) for each in range(count)]
    runs = dict(cases(sequences, 0, None))["left-padded batch"]
    assert any((step.mask == 0).any() for parts in runs for step in parts)
    assert sum(len(parts[0].ids) for parts in runs) == count
