"""The file of `unskill probe`: statistics of every skill's fit texts, and fingerprints of texts and model.

Safetensors, so that nothing in it is ever executed. It also holds the progress of an interrupted probe.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from exporter.common.errors import BadInput, RunFailed
from exporter.methods.neurons.statistics import NeuronSums
from exporter.models.loading import LoadedModel
from exporter.prompts.formats import Query

KEY, VERSION = "unskill_statistics", 1
SIDES = ("forget", "retain")


@dataclass
class ProbedSide:
    """Texts of one side of one skill: their fingerprint, their number, and how many have been probed so far."""

    fingerprint: str
    texts: int
    done: int = 0
    sums: NeuronSums | None = None

    @property
    def whole(self) -> bool:
        return self.done == self.texts and self.sums is not None


@dataclass
class StatisticsFile:
    """Results of `unskill probe` for one model: by name of the skill, the forget and the retain side."""

    model: str
    dtype: str
    skills: dict[str, dict[str, ProbedSide]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file in one step, so that a complete one exists at any time. Raises RunFailed."""
        tensors: dict[str, Tensor] = {}
        skills: dict[str, dict[str, Any]] = {name: {} for name in self.skills}
        for name, sides in self.skills.items():
            for side, probed in sides.items():
                skills[name][side] = {key: getattr(probed, key) for key in ("fingerprint", "texts", "done")}
                if probed.sums is not None and probed.done:
                    for key, tensor in probed.sums.tensors().items():
                        tensors[f"{name}.{side}.{key}"] = tensor.contiguous()
        content = {"version": VERSION, "kind": "probe", "model": self.model, "dtype": self.dtype, "skills": skills}
        temporary = path.with_name(f".{path.name}.unskill-{os.getpid()}")
        try:
            save_file(tensors, temporary, {"format": "pt", KEY: json.dumps(content)})
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            raise RunFailed(f"{path}: cannot be written ({error})") from error
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, flag: str) -> StatisticsFile:
        """Raises BadInput if the file cannot be read or holds something else."""
        if not path.is_file():
            raise BadInput(f"{flag}: no such file: {path}")
        try:
            with safe_open(path, "pt") as file:
                content = json.loads((file.metadata() or {})[KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if content["version"] != VERSION or content["kind"] != "probe":
                raise BadInput(
                    f"{flag}: {path.name} is of kind {content['kind']}, version {content['version']}; unskill "
                    f"probe writes version {VERSION}"
                )
            loaded = cls(content["model"], content["dtype"])
            for name, sides in content["skills"].items():
                loaded.skills[name] = {side: _side(tensors, f"{name}.{side}", sides[side]) for side in sides}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"{flag}: {path.name} is not a statistics file of unskill ({error})") from error
        return loaded

    def find(self, texts: Sequence[Query], side: str) -> ProbedSide | None:
        """The side of any skill with these texts, if there is one."""
        wanted = texts_fingerprint(texts)
        return next((sides[side] for sides in self.skills.values() if sides[side].fingerprint == wanted), None)


def _side(tensors: Mapping[str, Tensor], prefix: str, record: Mapping[str, Any]) -> ProbedSide:
    found = {name.removeprefix(f"{prefix}."): each for name, each in tensors.items() if name.startswith(f"{prefix}.")}
    sums = NeuronSums.of_tensors(found) if record["done"] else None
    return ProbedSide(str(record["fingerprint"]), int(record["texts"]), int(record["done"]), sums)


def texts_fingerprint(texts: Sequence[Query]) -> str:
    """sha256 of texts as token ids, whatever their order."""
    each = sorted(hashlib.sha256(str(query.ids).encode()).hexdigest() for query in texts)
    return hashlib.sha256("\n".join(each).encode()).hexdigest()


def model_fingerprint(loaded: LoadedModel) -> str:
    """sha256 over some values of every weight, which differs for another model or training."""
    digest = hashlib.sha256()
    for name, parameter in loaded.model.named_parameters():
        flat = parameter.detach().flatten()
        some = flat[:: max(1, flat.numel() // 1024)].cpu().contiguous().view(torch.uint8)
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode() + some.numpy().tobytes())
    return digest.hexdigest()
