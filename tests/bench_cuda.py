"""Times for examples/onnx/GPU.md: the CUDA kernels against torch's operations, a decode step against the base model's.

    python -m tests.bench_cuda BASE CHECKPOINT

CHECKPOINT: an export of BASE with neurons adjusted and hypercubes. The kernels by themselves need a GPU, nvcc and a
PyTorch with CUDA; the steps need onnxruntime-gpu too. With `--device cpu` the steps alone are run, by ONNX Runtime's
CPU provider: to try this program where there is no GPU.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from custom_modeling.key_space import inside_hypercubes
from custom_modeling.neuron_adjust import adjust, draw_context, uniform_draws
from exporter.onnx.library import build_operators
from exporter.onnx.runners import positions_of
from tests.bench import Row, interleave
from tests.bench_onnx import BARE, BODIES, KERNELS, PREFILL, STEPS, graphs
from tests.operator_models import cuda_launcher, hypercubes, neurons

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
LAUNCHES = 100
"""Of a kernel in a row, before the device is waited for."""
# Tokens, adjusted neurons, all of the module, hypercubes: a step and a prefill of SmolLM2 and of a model of 8B.
SIZES = ((1, 16, 1536, 5), (512, 16, 1536, 5), (1, 144, 14336, 5), (512, 144, 14336, 5))


class Steps:
    """A graph that `write_graph` has written, whose cache stays on the device from one forward to the next."""

    def __init__(self, path: Path, device: str, library: Path | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        if library is not None:
            options.register_custom_ops_library(str(library))
        self._session = onnxruntime.InferenceSession(str(path), options, providers=[PROVIDERS[device]])
        assert self._session.get_providers()[0] == PROVIDERS[device], "this ONNX Runtime does not run on the device"
        self._device = device
        self._past = [each for each in self._session.get_inputs() if each.name.startswith("past_key_values.")]

    def forward(self, ids: np.ndarray, cache: list[onnxruntime.OrtValue] | None = None) -> list[onnxruntime.OrtValue]:
        """The cache after these tokens (1, positions), which the cache of those before is given for."""
        if cache is None:
            empty = (np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32) for each in self._past)
            cache = [onnxruntime.OrtValue.ortvalue_from_numpy(each, self._device) for each in empty]
        mask = np.ones((1, cache[0].shape()[2] + ids.shape[1]), np.int64)
        binding = self._session.io_binding()
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_of(mask, ids.shape[1])}
        for name, value in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for each, kept in zip(self._past, cache, strict=True):
            binding.bind_ortvalue_input(each.name, kept)
        for each in self._session.get_outputs():
            binding.bind_output(each.name, self._device)
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        _, *after = binding.get_outputs()  # without the logits
        return after


def decoding(paths: dict[str, Path], library: Path, device: str, pairs: int) -> list[Row]:
    """STEPS tokens one by one after PREFILL others, the same for all."""
    sides = {
        BARE: Steps(paths[BARE], device),
        BODIES: Steps(paths[BODIES], device),
        KERNELS: Steps(paths[BODIES], device, library),
    }
    ids = np.arange(100, 100 + PREFILL + STEPS, dtype=np.int64)[None]
    caches = {name: side.forward(ids[:, :PREFILL]) for name, side in sides.items()}

    def run(name: str) -> None:
        cache = caches[name]
        for place in range(PREFILL, PREFILL + STEPS):
            cache = sides[name].forward(ids[:, place : place + 1], cache)

    found = interleave({name: lambda name=name: run(name) for name in sides}, pairs)
    steps = {name: [value / STEPS * 1e3 for value in values] for name, values in found.items()}
    return [Row(f"{device}: decode step, {name}", BARE, steps[BARE], steps[name], "ms") for name in (BODIES, KERNELS)]


def launches(library: Path, pairs: int) -> Iterator[Row]:
    """Each kernel, started by ctypes on torch's stream, against the same by torch's operations."""
    launch = cuda_launcher(library)
    for sizes in SIZES:
        for name, sides in arms(launch, *sizes).items():
            times = ([seconds / LAUNCHES * 1e6 for seconds in side] for side in interleave(sides, pairs).values())
            yield Row("{}: {} tokens, {} of {} neurons, {} hypercubes".format(name, *sizes), "torch", *times, "us")


def arms(
    launch: Callable[..., None], tokens: int, count: int, width: int, cubes: int
) -> dict[str, dict[str, Callable[[], None]]]:
    """By operator and side, LAUNCHES runs in a row on inputs of this size."""
    generator, stream = torch.Generator().manual_seed(0), torch.cuda.current_stream()
    given = {name: each.cuda() for name, each in neurons(1, tokens, width, count)[0].items()}
    value, index, threshold, standard = (
        given[name] for name in ("pre_activation", "index", "threshold", "standardisers")
    )
    bounds = hypercubes(cubes, width, generator).cuda()
    keys = torch.randint(0, 2**31 - 1, (count,), generator=generator).cuda()
    places, ids = (torch.randint(0, 2**15, (1, tokens), generator=generator).cuda() for _ in range(2))
    adjusted, hit = torch.empty_like(value), torch.empty((1, tokens), dtype=torch.bool, device="cuda")
    draws = torch.empty((1, tokens, count), device="cuda")

    def many(run: Callable[..., object], *arguments: Any) -> None:
        for _ in range(LAUNCHES):
            run(*arguments)
        torch.cuda.synchronize()

    def of(name: str, theirs: Callable[[], object], *ours: Any) -> dict[str, Callable[[], None]]:
        return {"torch": lambda: many(theirs), "kernel": lambda: many(launch, name, stream, *ours)}

    return {
        "NeuronDraws": of(
            "neuron_draws",
            lambda: uniform_draws(draw_context(places, ids), keys),
            *(places, ids, keys, draws, tokens, count),
        ),
        "NeuronAdjust": of(
            "neuron_adjust",
            lambda: adjust(value, index, threshold, *standard),
            *(value, index, threshold, standard, adjusted, tokens, width, count),
        ),
        "KeySpaceDetect": of(
            "key_space_detect",
            lambda: inside_hypercubes(value, bounds),
            *(value, bounds, hit, tokens, width, cubes),
        ),
    }


@click.command()
@click.argument("base", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--device", type=click.Choice(list(PROVIDERS)), default="cuda", show_default=True)
@click.option("--pairs", type=click.IntRange(min=2), default=7, show_default=True)
def main(base: Path, checkpoint: Path, device: str, pairs: int) -> None:
    with tempfile.TemporaryDirectory(prefix="unskill-bench-") as work:
        library = build_operators(Path(work) / "operators.so", cuda=device == "cuda")
        rows = list(launches(library, pairs)) if device == "cuda" else []
        rows += decoding(graphs(base, checkpoint, Path(work)), library, device, pairs)
    card = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPUs"
    table = Table(
        *("measured", "against", "bare", "unskill", "ratio", "min - max", "aim"),
        title=f"{card}: medians of {pairs} pairs; torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}",
    )
    for row in rows:
        table.add_row(*row.cells())
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
