"""Work that is kept: what the model computed for a batch, so that an export that was stopped goes on where it was, and
one with other budgets computes nothing twice.

A batch is known by the model, the environment and everything that its result depends on, so nothing is ever out of
date; files that no export has used for the longest time make room for others.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from exporter.common.cache import FOLDER, PART, SUFFIX
from exporter.common.text import Notify
from exporter.common.version import __version__

Tensors = dict[str, Tensor]


@dataclass
class Kept:
    """Results of batches in a folder. model: what they depend on beside the batch; found, made: how many of this run
    were there and were not."""

    folder: Path
    model: str
    notify: Notify
    found: int = 0
    made: int = 0
    full: bool = False

    def of(self, what: Sequence[object], compute: Callable[[], Tensors]) -> Tensors:
        """The result for a batch, computed where it is not there. what: all that it depends on beside the model."""
        digest = hashlib.sha256(repr((self.model, *what)).encode()).hexdigest()
        path = self.folder / digest[:2] / f"{digest}{SUFFIX}"
        if (there := read(path)) is not None:
            self.found += 1
            return there
        self.made += 1
        made = compute()
        if not self.full:
            self._write(path, made)
        return made

    def _write(self, path: Path, made: Tensors) -> None:
        part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: each.contiguous() for name, each in made.items()}, part)
            part.replace(path)
        except (OSError, SafetensorError) as error:  # a full disk is either of them
            self.full = True
            with suppress(OSError):
                part.unlink()
            self.notify(
                f"warning: {self.folder} cannot keep what is computed ({error}), so an export that is stopped begins "
                f"anew; {FOLDER} names another folder"
            )


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the names and values of tensors."""
    digest = hashlib.sha256()
    for name, each in sorted(tensors.items()):
        digest.update(f"{name} {tuple(each.shape)} {each.dtype}".encode() + each.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read(path: Path) -> Tensors | None:
    """What a file has; None where there is none, or one that is no such file."""
    try:
        found = load_file(path)
        os.utime(path)  # used last
    except (OSError, SafetensorError):
        return None
    return found


def environment_of(model: Mapping[str, object]) -> str:
    """What the results of a model's batches depend on beside the batches."""
    machine = platform.machine(), platform.processor(), torch.backends.cpu.get_cpu_capability()
    return repr(
        (
            sorted(model.items()),
            __version__,
            torch.__version__,
            transformers.__version__,
            torch.get_num_threads(),
            torch.cuda.get_device_name() if torch.cuda.is_available() else "",
            machine,
        )
    )
