"""The interventions' buffers: those of config.json by shape and sha256, sound, and made of the stored statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from custom_modeling.buffers import (
    KSD_BOUNDS,
    NA_INDEX,
    NA_KEY,
    NA_PARAMS,
    REFUSAL_STATES,
    SP_INDEX,
    in_mlp,
    is_unskill,
    layer_of,
    mlp_forms,
    states_form,
)
from custom_modeling.loading import tensor_sha256
from custom_modeling.neuron_adjust import neuron_key
from exporter.methods.key_space.hypercubes import KeySpace
from exporter.methods.moments import Gaussian
from exporter.methods.refusal.states import LEAD
from exporter.models.families import EMBEDDING, HEAD
from exporter.models.files import size_in
from exporter.verification.checks import NotMade, Wrong, counted, none_of
from exporter.verification.view import View

STATISTICS = "reproduce/statistics.safetensors"


def read_buffers(view: View) -> dict[str, Tensor]:
    """All buffers by their names inside the base model, from whichever file has them."""
    files = {file for name, file in view.index.items() if is_unskill(name)}
    found: dict[str, Tensor] = {}
    for file in sorted(files):
        try:
            with safe_open(view.folder / file, "pt") as opened:
                names = [name for name in opened.keys() if is_unskill(name)]  # noqa: SIM118
                found |= {name.removeprefix("model."): opened.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise Wrong(f"{file} cannot be read ({error})") from error
    return found


def check_interventions(view: View) -> str:
    """Names, shapes, dtypes and sha256 of config.json; values that make sense."""
    buffers, record = read_buffers(view), view.record
    shapes = expected_shapes(view)
    none_of(of_other_form(buffers, shapes))
    if shapes.keys() != record["sha256"].keys():
        raise Wrong("config.json: unskill.sha256 and unskill.layers name different buffers")
    none_of(f"{name} is altered (unskill.sha256)" for name, each in buffers.items() if not same(each, record, name))
    none_of(unsound(buffers, record, size_in(view.config, "intermediate_size")))
    return f"{counted(len(buffers), 'buffer')} with the sha256 of config.json"


def same(tensor: Tensor, record: dict[str, Any], name: str) -> bool:
    return bool(tensor_sha256(tensor) == record["sha256"][name])


def expected_shapes(view: View) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every buffer by config.json."""
    config, record = view.config, view.record
    size = size_in(config, "intermediate_size")
    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for layer, counts in record["layers"].items():
        forms = mlp_forms(size, *(counts.get(kind, 0) for kind in ("cubes", "adjusted", "pruned")))
        found |= {in_mlp(layer, name): form for name, form in forms.items()}
    if record["refusal_token_id"] is not None and record["base_model"] == "closed":
        found[REFUSAL_STATES] = states_form(size_in(config, "hidden_size"))
    return found


def of_other_form(buffers: dict[str, Tensor], shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> Iterator[str]:
    for name in sorted(shapes.keys() - buffers.keys()):
        yield f"no file has {name}, which config.json describes"
    for name in sorted(buffers.keys() - shapes.keys()):
        yield f"config.json does not describe {name}"
    for name in sorted(buffers.keys() & shapes.keys()):
        shape, dtype = shapes[name]
        found = buffers[name]
        if (tuple(found.shape), found.dtype) != (shape, dtype):
            yield f"{name} is {found.dtype} {tuple(found.shape)}, by config.json {dtype} {shape}"


def unsound(buffers: dict[str, Tensor], record: dict[str, Any], size: int) -> Iterator[str]:
    """Values that no export writes. size: d_ff."""
    for name, tensor in buffers.items():
        kind = name.rpartition(".")[2]
        if not torch.isfinite(tensor).all():
            yield f"{name} holds NaN or infinity"
        elif kind == KSD_BOUNDS and not (tensor[:, 0] <= tensor[:, 1]).all():
            yield f"{name}: a lower bound is above its upper one"
        elif kind == NA_PARAMS and not (tensor[deviations(record)] > 0).all():
            yield f"{name}: a deviation is not above 0"
        elif kind in (NA_INDEX, SP_INDEX):
            ascending = bool((tensor[1:] > tensor[:-1]).all())
            if not ascending or int(tensor[0]) < 0 or int(tensor[-1]) >= size:
                yield f"{name} does not hold numbers of neurons, ascending, below {size}"
        elif kind == NA_KEY:
            layer = layer_of(name)
            index = buffers[in_mlp(layer, NA_INDEX)].tolist()
            if tensor.tolist() != [neuron_key(record["seed"], layer, neuron) for neuron in index]:
                yield f"{name} is not that of seed {record['seed']}"


def deviations(record: dict[str, Any]) -> list[int]:
    """Rows of a layer's params that are above 0: the authors' code has forget texts' mean where their deviation is."""
    return [1, 3] if record["compat"] is None else [3]


def check_refusal_row(view: View) -> str:
    """R's row of embedding and head: along the refusal's final state, and long enough for any head to read it as R."""
    refusal = view.record["refusal_token_id"]
    if refusal is None:
        raise NotMade("there is no refusal")
    if view.record["base_model"] != "closed":
        raise NotMade("no refusal state is stored that the row would have to be along")
    state = read_buffers(view)[REFUSAL_STATES][0].double()
    found = []
    for name in (EMBEDDING, HEAD):
        if name in view.index:
            with safe_open(view.folder / view.index[name], "pt") as opened:
                found.append(opened.get_slice(name)[refusal])
    for row in found:
        scale = float(row.double().norm() / state.norm())
        rounding = 2 * torch.finfo(row.dtype).eps * (scale * state).abs() + torch.finfo(row.dtype).tiny
        if not ((row.double() - scale * state).abs() <= rounding).all():
            raise Wrong(f"row {refusal} of a vocabulary weight is not the refusal's")
        # An export writes no shorter lead; the rest is for the rounding of both.
        if not float(row.double() @ state) >= 0.9 * LEAD:
            raise Wrong(f"row {refusal} of a vocabulary weight is too short for the refusal to lead")
    return f"row {refusal} is the refusal's in {counted(len(found), 'weight')}"


def check_statistics(view: View) -> str:
    """The buffers once more, from what was measured: bounds of the stored key statistics and alpha, and neurons'
    distributions of theirs."""
    path = view.folder / STATISTICS
    if not path.is_file():
        raise Wrong(f"{STATISTICS} is missing")
    try:
        statistics = load_file(path)
    except SafetensorError as error:
        raise Wrong(f"{STATISTICS} cannot be read ({error})") from error
    none_of(f"{STATISTICS}: {name} holds NaN" for name, each in statistics.items() if torch.isnan(each).any())
    buffers, record = read_buffers(view), view.record
    bounds = expected_bounds(statistics, record)
    problems = [f"{name} is not mean +- alpha deviations of {STATISTICS}" for name, each in bounds.items()
                if name not in buffers or not torch.equal(buffers[name], each)]  # fmt: skip
    # "official" puts the authors' own figures in their places.
    compared = 0
    if record["compat"] is None:
        for name, found in buffers.items():
            if name.endswith(NA_PARAMS):
                compared += 1
                if not of_some_skill(name, found, buffers, statistics, record):
                    problems.append(f"{name} is not of the distributions in {STATISTICS}")
    none_of(problems)
    if not bounds and not compared:
        raise NotMade("nothing in this checkpoint is made of stored means and deviations")
    return f"{counted(len(bounds) + compared, 'buffer')} made again of the stored statistics"


def key_space(statistics: dict[str, Tensor], skill: dict[str, Any]) -> KeySpace:
    """The hypercubes of one skill of config.json, before their size is set."""
    parts = [
        [statistics[f"{skill['name']}.ksd.{name}.{what}"] for what in ("mean", "deviation")]
        for name in skill["formats"]
    ]
    return KeySpace(tuple(skill["formats"]), tuple(Gaussian(0, *part) for part in parts))


def expected_bounds(statistics: dict[str, Tensor], record: dict[str, Any]) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    for skill in record["skills"]:
        if "layer" in skill:
            bounds = key_space(statistics, skill).bounds(skill["layer"], skill["alpha"]["value"])
            found.setdefault(in_mlp(skill["layer"], KSD_BOUNDS), []).append(bounds)
    return {name: torch.cat(parts) for name, parts in found.items()}


def of_some_skill(
    name: str, params: Tensor, buffers: dict[str, Tensor], statistics: dict[str, Tensor], record: dict[str, Any]
) -> bool:
    """Whether each neuron's params (4, n) are those of one of the skills that adjust neurons."""
    layer = layer_of(name)
    index = buffers[in_mlp(layer, NA_INDEX)]
    known = torch.zeros(len(index), dtype=torch.bool)
    for skill in record["skills"]:
        if skill["method"] in ("na", "na+ksd"):
            parts = [
                statistics[f"{skill['name']}.na.{side}.{what}"][layer, index].float()
                for side in ("forget", "retain")
                for what in ("mean", "deviation")
            ]
            known |= (torch.stack(parts) == params).all(0)
    return bool(known.all())
