"""Ratios of speed and memory against the bare model and against `cp`: a printed table, never a timed test.

    make bench

Both sides of every pair run in this process, warmed up and in turn, every second time in reverse order; a ratio is
that of one pair. Written files are removed and flushed (sync) between the timings, but the disk's own writeback, and
whatever else the machine does, is in the spread. BASE is a checkpoint folder of a family that `unskill` supports.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from operator import methodcaller
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import click
import torch
import transformers
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import GenerationConfig, LlamaConfig, PreTrainedModel

from exporter.checkpoint import writing as checkpoint
from exporter.common.staging import Staging
from exporter.evaluation.items import Item
from exporter.evaluation.scoring import Choices, Perplexity
from exporter.evaluation.tasks import Task
from exporter.methods.key_space import evidence
from exporter.methods.key_space.scoring import score_keys
from exporter.methods.neurons.texts import longest_first, probe_texts
from exporter.models.files import check_checkpoint, find_base, find_files
from exporter.models.loading import LoadedModel
from exporter.pipeline.run import export
from exporter.prompts.texts import answer_starts, as_texts
from tests import bench_onnx
from tests.bench_subject import Row, Subject, interleave, remarks
from tests.tiny import FORGET, RETAIN, one_skill

PREFILL_TOKENS, NEW_TOKENS = 512, 32
MIB = 2**20
SHARDS = (128, 512)  # MiB

console = Console(width=None if sys.stdout.isatty() else 140)


def probing(subject: Subject, pairs: int) -> list[Row]:
    """Key vectors and scores of the forget set against forwards of the same batches without head."""
    prober, queries = subject.prober, longest_first(subject.outcome.plan.forget.calibrate)
    batches = list(prober.batches(queries, lambda rows: prober.pad([queries[row] for row in rows]), ""))
    for batch in batches:
        batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                prober.loaded.model.base_model(**batch, use_cache=False)

    arms = {
        "bare": bare,
        "keys of the last tokens": lambda: list(prober.last_token_keys(queries, "")),
        "scores": lambda: score_keys(prober, queries, subject.outcome.evidence.keys, ""),
        "neurons of all layers": lambda: probe_texts(prober, queries, ""),
    }
    seconds = interleave(arms, pairs)
    against = f"{sum(len(query.ids) for query in queries)} tokens through the layers, {len(batches)} batches"
    bare_seconds = seconds.pop("bare")
    aims = {"neurons of all layers": "<= 1.10"}
    return [
        Row(f"probing: {name}", against, bare_seconds, ours, "s", aims.get(name, "<= 1.05"))
        for name, ours in seconds.items()
    ]


def prefill(subject: Subject, pairs: int) -> Iterator[Row]:
    queries = subject.outcome.plan.retain.choose
    ids = torch.tensor([token for query in queries for token in query.ids])[None, :PREFILL_TOKENS]
    for what, keep in (("last logits", 1), ("all logits", 0)):

        @torch.inference_mode()
        def forward(model: PreTrainedModel, keep: int = keep) -> None:
            model(input_ids=ids, use_cache=True, logits_to_keep=keep)

        yield speed(subject, f"prefill of {ids.shape[1]}, {what}", ids.shape[1], forward, pairs)


def decode(subject: Subject, pairs: int) -> Iterator[Row]:
    """Greedy answers of a fixed length to short prompts that are not blocked: the same on both sides."""
    queries = sorted(subject.outcome.plan.retain.report, key=lambda query: len(query.ids))
    ids = {"pad_token_id": subject.prober.pad_id, "eos_token_id": subject.prober.loaded.eos_ids}
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, **ids)
    for rows in (1, 8):
        inputs = subject.prober.pad(queries[:rows])
        generate = methodcaller("generate", **inputs, generation_config=config)
        if not torch.equal(*map(generate, subject.models)):
            remarks.print("left out: the two models answer differently, so some of the prompts are blocked")
            continue
        what = f"generate: {NEW_TOKENS} after {inputs['input_ids'].shape[1]}, batch {rows}"
        yield speed(subject, what, rows * NEW_TOKENS, generate, pairs)
        pair = subject.models[0], subject.adjusted
        yield speed(subject, f"{what}, 1 % adjusted", rows * NEW_TOKENS, generate, pairs, pair, ">= 0.95")


def speed(
    subject: Subject,
    what: str,
    tokens: int,
    run: Callable[[PreTrainedModel], object],
    pairs: int,
    models: tuple[PreTrainedModel, PreTrainedModel] | None = None,
    aim: str = ">= 0.98",
) -> Row:
    arms = dict(zip(("base", "ours"), (partial(run, model) for model in models or subject.models), strict=True))
    rates = [[tokens / value for value in seconds] for seconds in interleave(arms, pairs).values()]
    return Row(what, "base model", *rates, "tok/s", aim)


def writing(subject: Subject, pairs: int) -> list[Row]:
    """The same export written again and again, staging and renaming included; the base is in the page cache."""
    plan, findings, summary, draw = subject.arguments
    settings, states = plan.settings, findings.states
    target = subject.work / "written"

    def write(fingerprints: bool) -> None:
        with Staging(target) as staging:
            changed = replace(plan, settings=replace(settings, fingerprints=fingerprints))
            checkpoint.write_checkpoint(staging.path, changed, findings, summary, draw)
            staging.commit()

    def write_weights() -> None:
        target.mkdir()
        checkpoint.write_weights(
            target, findings.loaded, replace(settings, fingerprints=False), plan.token, states, buffers
        )

    def clear() -> None:
        shutil.rmtree(target, ignore_errors=True)
        os.sync()

    buffers = checkpoint.intervention_buffers(settings, findings.outcomes, findings.changes, states)
    arms = {
        "cp": lambda: subprocess.run(["cp", "-rL", subject.base, target], check=True),
        "weights, no fingerprints": write_weights,
        "checkpoint, no fingerprints": lambda: write(False),
        "checkpoint, fingerprints": lambda: write(True),
    }
    seconds = interleave(arms, pairs, clear)
    clear()
    size = sum(path.stat().st_size for path in subject.base.iterdir())
    against, bare = f"cp -r, {size / 1e6:,.0f} MB", seconds.pop("cp")
    aims = {"checkpoint, no fingerprints": "<= 1.2"}
    return [Row(f"writing: {name}", against, bare, ours, "s", aims.get(name, "")) for name, ours in seconds.items()]


def memory(subject: Subject, pairs: int) -> list[Row]:
    """Peak memory of write_weights for a shard and one several times its size, in a process of its own."""
    for size in SHARDS:
        names = (checkpoint.EMBEDDING, "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight")
        matrices = {name: torch.zeros(size * MIB // len(names) // 4096, 1024) for name in names}
        save_file(matrices, subject.work / f"{size}.safetensors")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        peaks = pool.submit(measure_peaks, subject.work, pairs).result()
    what, against = f"writer, {SHARDS[1]} MiB", f"shard of {SHARDS[0]} MiB"
    return [Row(f"{what}: {name}", against, *pair, "MiB", "about 1") for name, pair in peaks.items()]


def measure_peaks(folder: Path, pairs: int) -> dict[str, tuple[list[float], list[float]]]:
    """MiB by which writing raises the resident set over what it was at first, and what Python allocates meanwhile.

    Fingerprints are on: without them the kernel copies, and there is next to nothing to measure.
    """
    settings = one_skill("base", folder, "prompts", "others", fingerprints=True)
    model = SimpleNamespace(config=LlamaConfig(tie_word_embeddings=True))
    states = SimpleNamespace(head_row=torch.zeros(1024))
    buffers = {"layers.0.mlp.unskill_ksd_bounds": torch.zeros(1, 2, 4096)}

    def write(size: int) -> None:
        shard = folder / f"{size}.safetensors"
        rows = checkpoint.read_header(shard).tensors[checkpoint.EMBEDDING].shape[0]
        loaded = SimpleNamespace(files=SimpleNamespace(folder=folder, name="base", shards=(shard.name,)), model=model)
        with tempfile.TemporaryDirectory(dir=folder) as out:
            checkpoint.write_weights(Path(out), loaded, settings, SimpleNamespace(id=rows), states, buffers)

    def resident(field: str) -> int:
        return int(re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

    peaks = {"peak resident": ([], []), "peak allocated": ([], [])}
    tracemalloc.start()
    write(SHARDS[0])
    first = resident("VmRSS")
    for _ in range(pairs):
        for index, size in enumerate(SHARDS):
            Path("/proc/self/clear_refs").write_text("5")  # lets the peak begin anew
            tracemalloc.reset_peak()
            write(size)
            peaks["peak resident"][index].append((resident("VmHWM") - first) / MIB)
            peaks["peak allocated"][index].append(tracemalloc.get_traced_memory()[1] / MIB)
    return peaks


def evaluation(subject: Subject, pairs: int) -> Iterator[Row]:
    """Perplexity and multiple choice by the exported model against its own forwards of the same batches."""
    model, tokenizer = subject.models[1], subject.prober.loaded.tokenizer
    ours = LoadedModel(find_files(str(subject.out), "", check_checkpoint), model, tokenizer)
    texts = as_texts(tokenizer, [query.prompt for query in subject.outcome.plan.forget.calibrate], "", None)
    items = [
        Item("", row, {"question": f"{text}?", "choices": ["one", "two", "three", "four"], "answer": 1})
        for row, text in enumerate(FORGET[:32])
    ]
    shots = [Item("", row, item.fields | {"question": RETAIN[row]}) for row, item in enumerate(items[:5])]
    choices = Choices("", items, shots, tokenizer, len(items))
    shared = choices.shared[""]
    perplexity = Perplexity("", texts, answer_starts(tokenizer, texts), len(texts))
    for what, task, start in (("perplexity", perplexity, 0), ("choices", choices, shared)):
        batches = task.batches(None)
        inputs = [ours.pad([task.ids[row][start:] for row in rows], "right")["input_ids"] for rows in batches]
        prefix = torch.tensor([choices.ids[0][:start]], dtype=torch.int64)

        @torch.inference_mode()
        def bare(inputs: list[torch.Tensor] = inputs, prefix: torch.Tensor = prefix) -> None:
            if not prefix.shape[1]:
                for ids in inputs:
                    model(input_ids=ids, use_cache=False)
                return
            kept = model(input_ids=prefix, use_cache=True, logits_to_keep=1).past_key_values
            for ids in inputs:
                cache = copy.deepcopy(kept)
                cache.batch_repeat_interleave(len(ids))
                model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

        def run(task: Task = task, batches: list[list[int]] = batches) -> None:
            choices._prefix = None  # read again, as it is by the bare side
            for rows in batches:
                task.run(ours, rows)

        seconds = interleave({"bare": bare, "ours": run}, pairs)
        against = f"{sum(ids.numel() for ids in inputs) + start} tokens, {len(batches)} batches"
        yield Row(f"evaluation: {what}", against, seconds["bare"], seconds["ours"], "s", "<= 1.10")


def onnx(subject: Subject, pairs: int) -> Iterator[Row]:
    """A checkpoint with hypercubes and one per cent of its neurons adjusted, in ONNX Runtime, against its base."""
    out = subject.work / "both"
    assert subject.arguments  # the prompts are there
    sources = (f"'{subject.work / f'{count}-prompts.jsonl'}'" for count in (40, 24))
    layer = find_base(str(subject.base)).config["num_hidden_layers"] * 3 // 5
    chosen = {"method": "na+ksd", "beta": 1.0, "score": "effect-size", "layer": layer, "alpha": 12.0}
    with mock.patch.object(evidence, "ANSWER_TOKENS", 2):
        settings = one_skill(
            subject.base, out, *sources, **chosen, everyday=False, dtype="float32", force=True, quiet=True
        )
        export(settings, remarks.print)
    return bench_onnx.rows(subject.base, out, subject.work, pairs)


SECTIONS = {
    "probing": probing,
    "prefill": prefill,
    "decode": decode,
    "evaluation": evaluation,
    "onnx": onnx,
    "writing": writing,
    "memory": memory,
}


@click.command()
@click.argument("base", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--pairs", type=click.IntRange(min=2), default=7, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(SECTIONS)), help="Repeatable.")
def main(base: Path, pairs: int, only: tuple[str, ...]) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    table = Table(
        *("measured", "against", "bare", "unskill", "ratio", "min - max", "aim"),
        title=f"{base.resolve().name}, float32: medians of {pairs} pairs",
        caption=f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the start; torch {torch.__version__} with "
        f"{torch.get_num_threads()} threads, transformers {transformers.__version__}",
    )
    with (
        tempfile.TemporaryDirectory(prefix="unskill-bench-") as work,
        mock.patch("transformers.dynamic_module_utils.HF_MODULES_CACHE", f"{work}/modules"),
    ):
        subject = Subject(base.resolve(), Path(work))
        for name, measure in SECTIONS.items():
            if not only or name in only:
                remarks.print(f"{name} ...")
                for row in measure(subject, pairs):
                    table.add_row(*row.cells())
                table.add_section()
    console.print(table)


if __name__ == "__main__":
    main()
