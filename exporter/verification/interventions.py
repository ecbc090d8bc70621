"""The interventions' buffers: those of config.json by shape and sha256, sound, and made of the stored statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from custom_modeling.buffers import (
    KSD_BOUNDS,
    KSD_LIMITS,
    NA_INDEX,
    NA_KEY,
    NA_PARAMS,
    REFUSAL_STATES,
    SP_INDEX,
    in_mlp,
    layer_of,
    mlp_forms,
    states_form,
)
from custom_modeling.loading import tensor_sha256
from custom_modeling.neuron_adjust import neuron_key
from exporter.checkpoint.layout import STATISTICS
from exporter.common.text import counted
from exporter.methods.key_space.hypercubes import KeySpace
from exporter.methods.key_space.regions import STORED, Regions, joined
from exporter.methods.moments import Gaussian
from exporter.methods.refusal.head import LEAD
from exporter.models.families import EMBEDDING, FAMILIES, HEAD
from exporter.models.files import size_in
from exporter.recipes.settings import HYPERCUBE
from exporter.verification.checks import NotMade, Wrong, none_of
from exporter.verification.on_disk import OnDisk


def check_interventions(view: OnDisk) -> str:
    """Names, shapes, dtypes and sha256 of config.json; values that make sense."""
    buffers, record = view.buffers, view.record
    forms = expected_forms(view)
    none_of(of_other_form(buffers, forms))
    sha256 = record["sha256"]
    if forms.keys() != sha256.keys():
        raise Wrong("config.json: unskill.sha256 and unskill.layers name different buffers")
    none_of(f"{name} is altered (unskill.sha256)" for name in buffers if tensor_sha256(buffers[name]) != sha256[name])
    none_of(unsound(buffers, record, size_in(view.config, FAMILIES[view.model_type].form.key)))
    return f"{counted(len(buffers), 'buffer')} with the sha256 of config.json"


def expected_forms(view: OnDisk) -> dict[str, str]:
    """Dtype and shape of every buffer by config.json."""
    config, record = view.config, view.record
    size = size_in(config, FAMILIES[view.model_type].form.key)
    found: dict[str, Any] = {}
    for layer, counts in record["layers"].items():
        forms = mlp_forms(size, **counts)
        found |= {in_mlp(layer, name): form for name, form in forms.items()}
    if record["refusal_token_id"] is not None and record["base_model"] == "closed":
        found[REFUSAL_STATES] = states_form(size_in(config, "hidden_size"))
    return {name: f"{dtype} {shape}" for name, (shape, dtype) in found.items()}


def of_other_form(buffers: dict[str, Tensor], forms: dict[str, str]) -> Iterator[str]:
    found = {name: f"{tensor.dtype} {tuple(tensor.shape)}" for name, tensor in buffers.items()}
    for name in sorted(forms.keys() | found.keys()):
        if name not in found:
            yield f"no file has {name}, which config.json describes"
        elif name not in forms:
            yield f"config.json does not describe {name}"
        elif found[name] != forms[name]:
            yield f"{name} is {found[name]}, by config.json {forms[name]}"


def unsound(buffers: dict[str, Tensor], record: dict[str, Any], size: int) -> Iterator[str]:
    """Values that no export writes. size: d_ff."""
    # Rows of params that are above 0; the authors' code has forget texts' mean where their deviation is.
    deviations = [1, 3] if record["compat"] is None else [3]
    for name, tensor in buffers.items():
        kind = name.rpartition(".")[2]
        # A bound may be infinite.
        if (tensor.isnan() if kind in (KSD_BOUNDS, KSD_LIMITS) else ~torch.isfinite(tensor)).any():
            yield f"{name} holds NaN or infinity"
        elif kind in (KSD_BOUNDS, KSD_LIMITS) and not (tensor[:, 0] <= tensor[:, 1]).all():
            yield f"{name}: a lower bound is above its upper one"
        elif kind == NA_PARAMS and not (tensor[deviations] > 0).all():
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


def check_refusal_row(view: OnDisk) -> str:
    """R's row of embedding and head: made of the refusal's final states, and long enough for R to lead."""
    refusal = view.record["refusal_token_id"]
    if refusal is None:
        raise NotMade("there is no refusal")
    if view.record["base_model"] != "closed":
        raise NotMade("no refusal state is stored to compare the row with")
    states = view.buffers[REFUSAL_STATES].double()
    names = [name for name in (EMBEDDING, HEAD) if name in view.index]
    for name in names:
        with safe_open(view.folder / view.index[name], "pt") as opened:
            row = opened.get_slice(name)[refusal]
        parts = torch.linalg.lstsq(states.T, row.double()[:, None]).solution * states  # (2, hidden)
        rounding = 8 * torch.finfo(row.dtype).eps * parts.abs().sum(0) + torch.finfo(row.dtype).tiny
        if not ((row.double() - parts.sum(0)).abs() <= rounding).all():
            raise Wrong(f"row {refusal} of {name} is not the refusal's")
        # An export writes no shorter lead; the rest is for the rounding of both.
        if not float(row.double() @ states[0]) >= 0.9 * LEAD:
            raise Wrong(f"row {refusal} of {name} is too short for the refusal to lead")
    return f"row {refusal} is the refusal's in {counted(len(names), 'weight')}"


def check_statistics(view: OnDisk) -> str:
    """The buffers, computed again from what was measured: regions from the key statistics and alpha, neurons'
    parameters from their distributions."""
    statistics, buffers, record = view.statistics, view.buffers, view.record
    none_of(f"{STATISTICS}: {name} holds NaN" for name, each in statistics.items() if torch.isnan(each).any())
    bounds = expected_regions(statistics, record)
    problems = [
        f"{name} is not what {STATISTICS} and alpha make"
        for name, each in bounds.items()
        if name not in buffers or not torch.equal(buffers[name], each)
    ]
    # The buffers of "official" hold the authors' own figures.
    adjusted = [name for name in buffers if name.endswith(NA_PARAMS) and record["compat"] is None]
    problems += [
        f"{name} is not of the distributions in {STATISTICS}"
        for name in adjusted
        if not of_some_skill(name, buffers, statistics, record)
    ]
    none_of(problems)
    if not bounds and not adjusted:
        raise NotMade("nothing in this checkpoint is made of stored means and deviations")
    return f"{counted(len(bounds) + len(adjusted), 'buffer')} computed again from the stored statistics"


def key_space(statistics: dict[str, Tensor], skill: dict[str, Any]) -> KeySpace:
    """The hypercubes of one skill of config.json, before their size is set."""
    parts = [
        [statistics[f"{skill['name']}.ksd.{name}.{what}"] for what in ("mean", "deviation")]
        for name in skill["formats"]
    ]
    return KeySpace(tuple(skill["formats"]), tuple(Gaussian(0, *part) for part in parts))


def regions(statistics: dict[str, Tensor], skill: dict[str, Any]) -> Regions:
    """The regions along discriminants of one skill of config.json, before the threshold is set."""
    prefix = f"{skill['name']}.{STORED}"
    parts = {name.removeprefix(prefix): each for name, each in statistics.items() if name.startswith(prefix)}
    return Regions.of_parts(skill["layer"], skill["formats"], parts)


def expected_regions(statistics: dict[str, Tensor], record: dict[str, Any]) -> dict[str, Tensor]:
    """Bounds, directions and limits of all skills by buffer."""
    found: dict[int, list[dict[str, Tensor]]] = {}
    for skill in record["skills"]:
        if "layer" in skill:
            layer, alpha = skill["layer"], skill["alpha"]["value"]
            own = (
                {KSD_BOUNDS: key_space(statistics, skill).bounds(layer, alpha)}
                if skill.get("region", HYPERCUBE) == HYPERCUBE
                else regions(statistics, skill).buffers(alpha)
            )
            found.setdefault(layer, []).append(own)
    return {in_mlp(layer, name): each for layer, parts in found.items() for name, each in joined(parts).items()}


def of_some_skill(
    name: str, buffers: dict[str, Tensor], statistics: dict[str, Tensor], record: dict[str, Any]
) -> bool:
    """Whether each neuron's params (4, n) in this buffer are those of one of the skills that adjust neurons."""
    layer = layer_of(name)
    params, index = buffers[name], buffers[in_mlp(layer, NA_INDEX)]
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
