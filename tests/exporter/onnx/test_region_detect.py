"""Graphs of checkpoints whose regions bound coordinates along directions, hypercubes or both."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from custom_modeling.key_space import coordinates
from exporter.onnx.check.runners import Session, Torch, opened_graph, opened_model
from exporter.onnx.check.self_check import EVERY, SOME, Expected, halfway, self_check
from exporter.onnx.graph import write_graph
from exporter.onnx.operators import DOMAIN
from exporter.onnx.surgery import find_places
from exporter.onnx.symbolic import operators_for
from tests.tiny import FORGET, RETAIN, Exported, one_thread

pytestmark = pytest.mark.slow

FORMAT_1 = Path(__file__).parents[2] / "data" / "format-1" / "ksd"
INF = float("inf")
# By layer: regions, and directions along which they bound coordinates; those of layer 2 are hypercubes too.
MIXED = {0: {"cubes": 1}, 1: {"regions": 2, "directions": 3}, 2: {"cubes": 3, "regions": 3, "directions": 2}}
SINGLE = {1: {"cubes": 1, "regions": 1, "directions": 1}}


class Regional(NamedTuple):
    """A checkpoint with these regions, token ids of prompts, and its graph."""

    model: Any
    sequences: list[list[int]]
    graph: Path


def keys_of(model: Any, sequences: list[list[int]]) -> dict[int, torch.Tensor]:
    """By layer the keys of all tokens, (tokens, d_ff)."""
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in range(len(model.model.layers))}
    hooks = [
        each.mlp.down_proj.register_forward_pre_hook(lambda _, given, kept=kept: kept.append(given[0][0].float()))
        for each, kept in zip(model.model.layers, found.values(), strict=True)
    ]
    with torch.inference_mode():
        for ids in sequences:
            model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return {layer: torch.cat(kept) for layer, kept in found.items()}


def install(model: Any, layers: Mapping[int, Mapping[str, int]], keys: Mapping[int, torch.Tensor]) -> None:
    """Give a loaded checkpoint these regions instead of its own, each of which holds some of the keys.

    No key is so close to a face that rounding decides, in float16 too.
    """
    generator = torch.Generator().manual_seed(0)
    for layer in model.model.unskill_layers["blocking"]:
        del model.model.layers[layer].mlp.unskill_ksd_bounds
    model.model.unskill_layers["blocking"] = tuple(layers)
    for layer, counts in layers.items():
        mlp, seen = model.model.layers[layer].mlp, keys[layer].clone()
        mlp.__class__ = model.model.unskill_mlp_classes.get(type(mlp), type(mlp))
        mlp.unskill_install(model.config, **counts)
        if counts.get("cubes"):
            for cube in mlp.unskill_ksd_bounds:
                held = seen[torch.randperm(len(seen), generator=generator)[: len(seen) // 2]]
                cube[0], cube[1] = held.amin(0) - 0.05, held.amax(0) + 0.05
        if counts.get("regions"):
            mlp.unskill_ksd_directions.copy_(torch.randn(mlp.unskill_ksd_directions.shape, generator=generator))
            found = coordinates(seen, mlp.unskill_ksd_directions)
            for place, limits in enumerate(mlp.unskill_ksd_limits):
                limits[0], limits[1] = gap(found, 0.1 + 0.1 * place), gap(found, 0.6 + 0.1 * place)
            mlp.unskill_ksd_limits[0, 0] = -INF


def gap(values: torch.Tensor, share: float) -> torch.Tensor:
    """For each column the middle of the widest gap around a quantile."""
    ordered = values.sort(0).values
    start, count = int(len(ordered) * (share - 0.1)), len(ordered) // 5
    near = ordered[start : start + count]
    widest = near.diff(dim=0).argmax(0)
    return torch.stack([near[at : at + 2, column].mean() for column, at in enumerate(widest)])


@pytest.fixture(scope="module")
def regional(
    tiny: Callable[..., Exported], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, torch.dtype], Regional]]:
    """regional(which, dtype): "mixed" or "single"."""
    made: dict[tuple[str, torch.dtype], Regional] = {}

    def get(which: str, dtype: torch.dtype = torch.float32) -> Regional:
        if (which, dtype) not in made:
            checkpoint = tiny("llama", "ksd").checkpoint
            tokenizer = AutoTokenizer.from_pretrained(checkpoint)
            sequences = [tokenizer(text)["input_ids"] for text in (*FORGET[:4], *RETAIN[:4])]
            model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True, dtype=dtype).eval()
            path = tmp_path_factory.mktemp("regions") / "model.onnx"
            install(model, {"mixed": MIXED, "single": SINGLE}[which], keys_of(model, sequences))
            write_graph(model, path)
            made[which, dtype] = Regional(model, sequences, path)
        return made[which, dtype]

    with one_thread():
        yield get


def hits(model: Any, ids: list[int]) -> list[bool]:
    refusal = model.config.unskill["refusal_token_id"]
    return [bool(each) for each in Torch(model).forward(np.array([ids]))[0][0].argmax(-1) == refusal]


@pytest.mark.parametrize("kernels", [False, True], ids=["bodies", "kernels"])
@pytest.mark.parametrize("which", ["mixed", "single"])
def test_refuses_what_torch_refuses(
    which: str, kernels: bool, regional: Callable[..., Regional], library: Path
) -> None:
    model, sequences, path = regional(which)
    refusal, session, total = model.config.unskill["refusal_token_id"], Session(path, library if kernels else None), 0
    for ids in sequences:
        expected = hits(model, ids)
        found = session.forward(np.array([ids]))[0][0].argmax(-1) == refusal
        assert found.tolist() == expected
        total += sum(expected)
    assert 0.05 < total / sum(map(len, sequences)) < 0.95


def test_graph_has_each_constant_whole(regional: Callable[..., Regional]) -> None:
    path = regional("mixed").graph
    graph, places = onnx.load(path), find_places(path)
    kinds = {each.name: (tuple(each.dims), each.data_type) for each in graph.graph.initializer}
    prefix, float32 = "model.model.layers.{}.mlp.unskill_ksd_", onnx.TensorProto.FLOAT
    assert {layer: kinds[name] for layer, name in places.bounds.items()} == {
        0: ((1, 2, 64), float32),
        2: ((3, 2, 64), float32),
    }
    assert {layer: kinds[name] for layer, name in places.directions.items()} == {
        1: ((3, 64), float32),
        2: ((2, 64), float32),
    }
    assert {layer: kinds[name] for layer, name in places.limits.items()} == {
        1: ((2, 2, 3), float32),
        2: ((3, 2, 2), float32),
    }
    assert places.limits[2] == prefix.format(2) + "limits" and list(places.keys) == [0, 1, 2]
    used = [node.op_type for node in graph.graph.node if node.domain == DOMAIN]
    assert sorted(used) == ["KeySpaceDetect"] * 4 + ["RegionDetect"] * 4
    assert {each.name for each in graph.functions} == set(used)


def checked(given: Regional, library: Path | None, path: Path | None = None) -> tuple[list[Any], bool]:
    with TemporaryFile() as file:
        expected = Expected(given.model, given.sequences, 0, file)
        return self_check(expected, given.graph if path is None else path, library)


@pytest.mark.parametrize(("which", "dtype"), [("mixed", torch.float32), ("mixed", torch.float16)])
def test_self_check_agrees(which: str, dtype: torch.dtype, regional: Callable[..., Regional], library: Path) -> None:
    given = regional(which, dtype)
    rows, agrees = checked(given, library)
    assert agrees, rows
    assert {SOME, EVERY} <= {row.case for row in rows}
    kinds = {each.name: each.data_type for each in onnx.load(given.graph).graph.initializer if "_ksd_" in each.name}
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("which", ["mixed", "single"])
def test_opened_regions_are_closed_again(which: str, regional: Callable[..., Regional]) -> None:
    model, sequences, path = regional(which)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    refusal, ids = model.config.unskill["refusal_token_id"], np.array(sequences[:1])
    with opened_model(model):
        assert all(hits(model, sequences[0]))
    assert (Session(path, changed=opened_graph(path)).forward(ids)[0].argmax(-1) == refusal).all()
    side = Torch(model)
    side.forward(ids)
    within = [halfway(each) for each in side.greatest]
    reached = np.any([each[0] <= reach for each, reach in zip(side.greatest, within, strict=True)], 0)
    with opened_model(model, within):
        assert hits(model, sequences[0]) == reached.tolist() and 0 < reached.sum() < len(reached)
    found = Session(path, changed=opened_graph(path, within)).forward(ids)[0][0].argmax(-1) == refusal
    assert found.tolist() == reached.tolist()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())


def test_a_body_that_compares_otherwise_is_found(regional: Callable[..., Regional], tmp_path: Path) -> None:
    given = regional("single")
    model = onnx.load(given.graph, load_external_data=False)
    body = next(each for each in model.functions if each.name == "RegionDetect")
    next(node for node in body.node if node.op_type == "Or").op_type = "And"
    wrong = tmp_path / "model.onnx"
    onnx.save(model, wrong)
    shutil.copy(given.graph.with_name("model.onnx_data"), tmp_path)
    rows, agrees = checked(given, None, wrong)
    assert not agrees and any(row.refusals < row.positions for row in rows if row.case == SOME)


def test_close_coordinates_are_counted(regional: Callable[..., Regional]) -> None:
    model, sequences, _ = regional("single")
    side, ids = Torch(model), np.array(sequences[:1])
    side.forward(ids)
    assert (side.close.tolist(), side.edge.tolist()) == ([0], [0])
    mlp = model.model.layers[1].mlp
    kept = {name: tensor.clone() for name, tensor in mlp.named_buffers()}
    try:
        with torch.inference_mode(False), opened_model(model):
            side.forward(ids)
            assert side.edge.tolist() == [0]  # infinite limits are far from everything
            found = coordinates(keys_of(model, sequences[:1])[1], mlp.unskill_ksd_directions)
            mlp.unskill_ksd_limits[0, 0] = found[3]
            side.forward(ids)
            assert side.edge.tolist() == [1]
            mlp.unskill_ksd_bounds[0, :, 0] = torch.tensor([-2e6, -1e6])  # which leaves out every key
            side.forward(ids)
            assert side.edge.tolist() == [0]
    finally:
        for name, tensor in mlp.named_buffers():
            tensor.copy_(kept[name])


def test_format_1_has_no_regions_along_directions() -> None:
    """Its modeling file lacks the function that is replaced in others."""
    model = AutoModelForCausalLM.from_pretrained(FORMAT_1, trust_remote_code=True)
    assert not hasattr(sys.modules[type(model).__module__], "inside_regions")
    with opened_model(model):
        assert all(hits(model, [5, 6, 7]))
    with operators_for(model):
        pass
