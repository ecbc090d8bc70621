"""Why an answer was blocked or not: scores against alpha, and neurons moved, at every position it was read from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from custom_modeling.buffers import NA_INDEX
from custom_modeling.key_space import inside_hypercubes, inside_regions
from exporter.common.errors import BadInput
from exporter.methods.key_space.regions import ELSEWHERE
from exporter.methods.moments import largest_deviation
from exporter.models.hooks import key_hooks, pre_activation_hooks
from exporter.models.loading import LoadedModel
from exporter.recipes.settings import HYPERCUBE


@dataclass(frozen=True, eq=False)
class Detector:
    """The regions of one skill, with their buffers as stored, on the CPU. bounds: (c, 2, d_ff) float32, of hypercubes;
    directions, limits: (r, d_ff) and (c, 2, r) float32, of regions along discriminants."""

    skill: str
    layer: int
    alpha: float
    bounds: Tensor | None
    directions: Tensor | None = None
    limits: Tensor | None = None

    @property
    def limit(self) -> str:
        """What alpha is called: half-spaces have no size."""
        return "alpha" if self.directions is None else "threshold"

    def score(self, key: Tensor) -> float:
        """The score of one key vector (d_ff,), inside where at most alpha: of hypercubes s(k), of regions along
        discriminants see `Regions.scores`; the least over the regions.

        Centre and deviations come from the bounds, which are mu -+ alpha sd rounded outwards to float32. A NaN is not
        outside, as in the runtime.
        """
        if self.bounds is None:
            return self._score_along(key)
        lower, upper = self.bounds.double().unbind(1)
        deviation = (upper - lower) / (2 * self.alpha)
        centre = (lower + upper) / 2  # (c, d_ff)
        known = torch.where(key.isnan(), centre, key.double())
        score = largest_deviation(known, centre, deviation).amin()
        return float(score.clamp(max=torch.finfo(score.dtype).max))  # JSON knows no infinity

    def _score_along(self, key: Tensor) -> float:
        # At the limit of the skill's coordinate the score is alpha; coordinates of places follow those of skills.
        assert self.directions is not None and self.limits is not None
        along = (self.directions.double() @ key.double()).nan_to_num(torch.inf)
        count, scores = len(self.limits), []
        for number, (lower, _) in enumerate(self.limits.double()):
            score = self.alpha + float(lower[number] - along[number])
            there = along[count + number] >= lower[count + number]
            scores.append(score if there else max(score, ELSEWHERE))
        return max(min(scores), torch.finfo(torch.float64).min)

    def blocks(self, key: Tensor) -> bool:
        if self.directions is None or self.limits is None:
            assert self.bounds is not None
            return bool(inside_hypercubes(key, self.bounds))
        return bool(inside_regions(key, self.directions, self.limits))


def detectors_of(loaded: LoadedModel) -> list[Detector]:
    """The skills that a checkpoint refuses, in the order of config.json, which is that of the bounds within a layer.

    Raises BadInput if config.json does not assign the hypercubes to skills.
    """
    core: Any = loaded.model.base_model
    taken: dict[int, int] = {}
    along: dict[int, int] = {}
    found = []
    try:
        for skill in loaded.settings["skills"]:
            if "ksd" not in skill["method"].split("+"):
                continue
            layer, first = int(skill["layer"]), taken.get(int(skill["layer"]), 0)
            taken[layer] = first + len(skill["formats"])
            mlp, regions = core.layers[layer].mlp, slice(first, taken[layer])
            about = str(skill["name"]), layer, float(skill["alpha"]["value"])
            if skill.get("region", HYPERCUBE) == HYPERCUBE:
                found.append(Detector(*about, mlp.unskill_ksd_bounds[regions].cpu()))
                continue
            columns = slice(along.get(layer, 0), along.get(layer, 0) + 2 * len(skill["formats"]))
            along[layer] = columns.stop
            directions, limits = mlp.unskill_ksd_directions[columns], mlp.unskill_ksd_limits[regions, :, columns]
            found.append(Detector(*about, None, directions.cpu(), limits.cpu()))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadInput(
            f"CHECKPOINT {loaded.name}: config.json has no unskill.skills that fit its layers ({error!r})"
        ) from error
    blocking = {
        int(layer): counts.get("regions") or counts["cubes"]
        for layer, counts in loaded.settings["layers"].items()
        if counts.get("regions") or counts.get("cubes")
    }
    if blocking != taken:
        raise BadInput(
            f"CHECKPOINT {loaded.name}: config.json gives skills {taken} regions by layer, the model has {blocking}"
        )
    return found


@dataclass(frozen=True)
class Verdict:
    """What one skill's regions decided. score: of the prompt's last token; None if no forward was run; limit: what
    alpha is called.

    blocked_after: number of answer tokens before the refusal, 0 right after the prompt; None without a refusal.
    blocked_score: the score there.
    """

    skill: str
    layer: int
    alpha: float
    score: float | None
    blocked_after: int | None
    blocked_score: float | None
    limit: str = "alpha"


@dataclass(frozen=True)
class Moved:
    """Adjusted neurons over the positions from which an answer's tokens were predicted. `selected`: their number;
    `ever`: those moved at least once; `moves`: all moves, of any neuron at any position."""

    selected: int
    ever: int
    moves: int
    positions: int


@dataclass
class Seen:
    """The last position of each forward: by detector the keys' scores and decisions, by layer which adjusted neurons
    were moved, (n,) bool each."""

    keys: dict[Detector, list[tuple[float, bool]]]
    moved: dict[int, list[Tensor]] = field(default_factory=dict)

    def verdicts(self) -> list[Verdict]:
        found = []
        for detector, each in self.keys.items():
            score = each[0][0] if each else None
            hit, at = next(((place, at) for place, (at, blocked) in enumerate(each) if blocked), (None, None))
            found.append(Verdict(detector.skill, detector.layer, detector.alpha, score, hit, at, detector.limit))
        return found

    def neurons(self) -> Moved | None:
        """None if no neuron is adjusted or no forward was run."""
        if not self.moved:
            return None
        layers = [torch.stack(each) for each in self.moved.values()]  # (positions, n) each
        return Moved(
            selected=sum(each.shape[1] for each in layers),
            ever=sum(int(each.any(0).sum()) for each in layers),
            moves=sum(int(each.sum()) for each in layers),
            positions=max(each.shape[0] for each in layers),
        )


@contextmanager
def watched(loaded: LoadedModel, detectors: Sequence[Detector]) -> Iterator[Seen]:
    """Record what the interventions do in each forward of one row."""
    core: Any = loaded.model.base_model
    indices = {layer: module.mlp._buffers.get(NA_INDEX) for layer, module in enumerate(core.layers)}
    seen = Seen({detector: [] for detector in detectors})
    gates: dict[int, tuple[Tensor, Tensor]] = {}

    def before(layer: int, values: Tensor) -> None:
        if indices[layer] is not None:
            gates[layer] = values, values[0, -1, indices[layer]]

    def after(layer: int, keys: Tensor) -> None:
        if layer in gates:  # the MLP has changed values in place by now
            values, unmoved = gates.pop(layer)
            seen.moved.setdefault(layer, []).append((values[0, -1, indices[layer]] != unmoved).cpu())
        own = [detector for detector in detectors if detector.layer == layer]
        if own:
            key = keys[0, -1].float().cpu()
            for detector in own:
                seen.keys[detector].append((detector.score(key), detector.blocks(key)))

    with pre_activation_hooks(loaded.model, before), key_hooks(loaded.model, after):
        yield seen
