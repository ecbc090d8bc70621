"""The section `onnx` of `make bench`: one step of decoding in ONNX Runtime, and what writing the graph takes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from exporter.onnx.check.runners import Session
from exporter.onnx.graph import write_graph
from exporter.onnx.library import build_operators
from tests.bench_subject import Row, interleave

PREFILL, STEPS = 64, 32
# Over exec a process keeps the greatest memory of the one that it was forked from, so a small one starts the command.
MEASURED = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)
BARE, BODIES, KERNELS = "base model", "bodies", "kernels"
AIMS = {BODIES: "<= 1.10", KERNELS: "<= 1.03"}


def graphs(base: Path, checkpoint: Path, work: Path) -> dict[str, Path]:
    """Both models as graphs; the base's in the same way, without interventions."""
    found = {BARE: work / "base-onnx" / "model.onnx", BODIES: work / "ours-onnx" / "model.onnx"}
    for folder, path in ((base, found[BARE]), (checkpoint, found[BODIES])):
        path.parent.mkdir()
        trusted = folder is checkpoint
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trusted)
        write_graph(model.eval(), path)
    return found


def decoding(paths: Mapping[str, Path], work: Path) -> dict[str, Callable[[], object]]:
    """By side: STEPS tokens one by one after PREFILL others, the same for all."""
    library = build_operators(work / "operators.so", cuda=False)
    sessions = {
        BARE: Session(paths[BARE]),
        BODIES: Session(paths[BODIES]),
        KERNELS: Session(paths[BODIES], library),
    }
    ids = np.arange(100, 100 + PREFILL + STEPS, dtype=np.int64)[None]
    caches = {name: session.forward(ids[:, :PREFILL])[1] for name, session in sessions.items()}

    def run(name: str) -> None:
        cache = caches[name]
        for place in range(PREFILL, PREFILL + STEPS):
            _, cache = sessions[name].forward(ids[:, place : place + 1], None, cache)

    return {name: lambda name=name: run(name) for name in sessions}  # type: ignore[misc]


def writing(checkpoint: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak memory in MiB of `unskill onnx`, in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "exporter", "onnx", str(checkpoint), str(out), "--quiet"]
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - start, int(done.stdout) / 1024


def rows(base: Path, checkpoint: Path, work: Path, pairs: int) -> Iterator[Row]:
    seconds, peak = writing(checkpoint, work / "whole-onnx")
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) / 2**20
    yield Row("onnx: writing and comparing", "180 s", [180.0], [seconds], "s", "<= 1")
    yield Row("onnx: peak memory", "the weights", [size], [peak], "MiB", "<= 3")
    found = interleave(decoding(graphs(base, checkpoint, work), work), pairs)
    bare = found.pop(BARE)
    for name, values in found.items():
        yield Row(f"onnx: {STEPS} steps after {PREFILL}, {name}", BARE, bare, values, "s", AIMS[name])
