"""Times for examples/onnx/GPU.md: the CUDA kernels against torch's operations, a decode step against the base model's.

    python -m tests.bench_cuda
    python -m tests.bench_cuda BASE CHECKPOINT

The first, of the kernels alone, needs a GPU, nvcc and a PyTorch with CUDA. The second, of an export of BASE with
neurons adjusted and hypercubes, needs onnxruntime-gpu too; with `--device cpu` its steps are run by ONNX Runtime's CPU
provider, to try this program where there is no GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from custom_modeling.key_space import inside_hypercubes, inside_regions
from custom_modeling.neuron_adjust import adjust, draw_context, uniform_draws
from exporter.onnx.check.runners import position_ids
from exporter.onnx.library import CUDA, build_operators
from tests.bench_onnx import BARE, BODIES, KERNELS, PREFILL, STEPS, graphs
from tests.bench_subject import Row, interleave
from tests.operator_models import cuda_launcher, hypercubes, neurons, regions

PROVIDERS = {"cuda": CUDA, "cpu": "CPUExecutionProvider"}
LAUNCHES = 100
"""Of a kernel in a row, before the device is waited for."""
DIRECTIONS = 4
# Tokens, adjusted neurons, all of the module, regions: a step and a prefill of SmolLM2 and of a model of 8B.
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
        if self._session.get_providers()[0] != PROVIDERS[device]:  # it warns, and takes the CPU
            raise click.ClickException(f"this ONNX Runtime has no {PROVIDERS[device]} that can be loaded")
        self._device = device
        self._past = [each for each in self._session.get_inputs() if each.name.startswith("past_key_values.")]

    def forward(self, ids: np.ndarray, cache: list[onnxruntime.OrtValue] | None = None) -> list[onnxruntime.OrtValue]:
        """The cache after these tokens (1, positions), which the cache of those before is given for."""
        if cache is None:
            empty = (np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32) for each in self._past)
            cache = [onnxruntime.OrtValue.ortvalue_from_numpy(each, self._device) for each in empty]
        mask = np.ones((1, cache[0].shape()[2] + ids.shape[1]), np.int64)
        binding = self._session.io_binding()
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask, ids.shape[1])}
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
            yield Row("{}: {} tokens, {} of {} neurons, {} regions".format(name, *sizes), "torch", *times, "us")


def arms(
    launch: Callable[..., None], tokens: int, count: int, width: int, held: int
) -> dict[str, dict[str, Callable[[], None]]]:
    """By operator and side, LAUNCHES runs in a row on inputs of this size."""
    generator = torch.Generator().manual_seed(0)
    given = {name: each.cuda() for name, each in neurons(1, tokens, width, count)[0].items()}
    value, index, threshold = (given[name] for name in ("pre_activation", "index", "threshold"))
    standard = given["standardisers"].unbind()
    bounds = hypercubes(held, width, generator).cuda()
    along, limits = (
        regions((1, 1, width), DIRECTIONS, held, generator)[name].cuda() for name in ("directions", "limits")
    )
    keys = torch.randint(0, 2**31 - 1, (count,), generator=generator).cuda()
    places, ids = (torch.randint(0, 2**15, (1, tokens), generator=generator).cuda() for _ in range(2))
    adjusted, hit = torch.empty_like(value), torch.empty((1, tokens), dtype=torch.bool, device="cuda")
    draws = torch.empty((1, tokens, count), device="cuda")

    def of(theirs: Callable[[], object], name: str, *ours: Any) -> dict[str, Callable[[], None]]:
        return {
            "torch": recorded(theirs),
            "kernel": recorded(lambda: launch(name, torch.cuda.current_stream(), *ours)),
        }

    return {
        "NeuronDraws": of(
            lambda: uniform_draws(draw_context(places, ids), keys),
            *("neuron_draws", places, ids, keys, draws, tokens, count),
        ),
        # Into a copy on either side: the operator leaves its input as it is.
        "NeuronAdjust": of(
            lambda: adjust(value.clone(), index, threshold, *standard),
            *("neuron_adjust", value, index, threshold, given["standardisers"], adjusted, tokens, width, count),
        ),
        "KeySpaceDetect": of(
            lambda: inside_hypercubes(value, bounds),
            *("key_space_detect", value, bounds, hit, tokens, width, held),
        ),
        "RegionDetect": of(
            lambda: inside_regions(value, along, limits),
            *("region_detect", value, along, limits, hit, tokens, width, DIRECTIONS, held),
        ),
    }


def recorded(run: Callable[[], object]) -> Callable[[], None]:
    """LAUNCHES runs in a row as one CUDA graph, so that it is the device that is timed, and not Python."""
    run()  # what is made at the first call is not to be recorded
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            run()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay


@click.command()
@click.argument("base", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False)
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False)
@click.option("--device", type=click.Choice(list(PROVIDERS)), default="cuda", show_default=True)
@click.option("--pairs", type=click.IntRange(min=2), default=7, show_default=True)
def main(base: Path | None, checkpoint: Path | None, device: str, pairs: int) -> None:
    if (base is None) != (checkpoint is None) or (base is None and device == "cpu"):
        raise click.UsageError("give BASE and CHECKPOINT, or neither of them with --device cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("needs a GPU and a PyTorch with CUDA; --device cpu tries the steps without")
    with tempfile.TemporaryDirectory(prefix="unskill-bench-") as work:
        library = build_operators(Path(work) / "operators.so", cuda=device == "cuda")
        if device == "cuda":
            show(launches(library, pairs), f"{torch.cuda.get_device_name()}: kernels", pairs)
        if base is not None and checkpoint is not None:
            rows = decoding(graphs(base, checkpoint, Path(work)), library, device, pairs)
            show(rows, f"ONNX Runtime {onnxruntime.__version__}, {PROVIDERS[device]}", pairs)


def show(rows: Iterable[Row], what: str, pairs: int) -> None:
    """Print them at once: what comes after may fail."""
    table = Table(
        *("measured", "against", "bare", "unskill", "ratio", "min - max", "aim"),
        title=f"{what}: medians of {pairs} pairs; torch {torch.__version__} with {torch.get_num_threads()} threads",
    )
    for row in rows:
        table.add_row(*row.cells())
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
