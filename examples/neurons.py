"""Neuron Adjust against the authors' code and Selective Pruning, at the same cost for texts that must be retained.

    python examples/neurons.py BASE --forget gsm8k/train.jsonl,column=question,answer=answer,limit=200 \
        --retain mbpp/train.jsonl,column=text,answer=code,limit=200 \
        --forget-test gsm8k/test.jsonl,column=question,answer=answer,limit=60 \
        --retain-test mbpp/test.jsonl,column=text,answer=code,limit=60

Each method is exported with the same --max-retain-loss, by which it chooses how many neurons it takes. With
--no-everyday only the retain texts count in that, as in the paper; without it the packaged everyday prompts count too,
a bar that the authors' code and pruning may pass at no number of neurons. Then the perplexity of the test texts is
measured, on the base and on each checkpoint as transformers loads it, one text at a time: prompt, line break, answer,
special tokens as the tokenizer adds them, the first 384 tokens. Texts of --other-test are neither forgotten nor
retained: what happens to those is what the method costs outside of what it was held to.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.prompts.sources import Source, load_prompts
from exporter.prompts.texts import TEXT_TOKENS

METHODS = {
    "Neuron Adjust": ["--method", "na"],
    "Neuron Adjust, --draws expected": ["--method", "na", "--draws", "expected"],
    "Neuron Adjust, --compat official": ["--method", "na", "--compat", "official"],
    "Selective Pruning": ["--method", "sp"],
}


@click.command()
@click.argument("base", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--forget", required=True, multiple=True)
@click.option("--retain", required=True, multiple=True)
@click.option("--forget-test", required=True)
@click.option("--retain-test", required=True)
@click.option("--other-test", multiple=True, help="Repeatable.")
@click.option("--everyday/--no-everyday", default=True, show_default=True)
@click.option("--max-retain-loss", type=float, default=0.01, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(METHODS)), help="Repeatable; default all.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/neurons"), show_default=True)
def main(
    base: Path,
    forget: tuple[str, ...],
    retain: tuple[str, ...],
    forget_test: str,
    retain_test: str,
    other_test: tuple[str, ...],
    everyday: bool,
    max_retain_loss: float,
    seed: int,
    only: tuple[str, ...],
    work: Path,
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    common = [*(f"--forget={each}" for each in forget), *(f"--retain={each}" for each in retain)]
    common += ["--seed", str(seed), "--dtype", "float32", "--everyday" if everyday else "--no-everyday"]
    unskill = [sys.executable, "-m", "exporter"]
    # Probed once for all of them.
    statistics = work / "statistics.safetensors"
    subprocess.run([*unskill, "probe", base, statistics, *common, "--overwrite"], check=True)
    texts = [whole_texts(source) for source in (forget_test, retain_test, *other_test)]
    before = [mean_loss(base, each) for each in texts]
    table = Table("method", "score", "beta", "neurons", "forget texts", "retain texts")
    for source in other_test:
        table.add_column("/".join(Path(Source.parse(source, "--other-test").location).parts[-2:]))
    table.title = f"{base.name}: perplexity of {', '.join(str(len(each)) for each in texts)} test texts, at a retain "
    table.title += f"loss of at most {max_retain_loss} on held-out training texts"
    table.title += f"{' and everyday prompts' if everyday else ''}, seed {seed}"
    table.add_row("base model", "", "", "", *(f"{math.exp(loss):.3f}" for loss in before))
    for name, flags in METHODS.items():
        if only and name not in only:
            continue
        out = work / name.lower().replace(",", "").replace(" ", "-")
        limits = ["--max-retain-loss", str(max_retain_loss), "--statistics", statistics]
        command = [*unskill, "export", base, out, *common, *limits, *flags, "--overwrite", "--json"]
        done = subprocess.run([str(each) for each in command], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            table.add_row(name, f"not exported, exit {done.returncode}")
            continue
        found = json.loads(done.stdout)["skills"][0]["neurons"]
        after = [mean_loss(out, each) for each in texts]
        ratios = [f"{math.exp(a):.3f} (x{math.exp(a - b):.3f})" for a, b in zip(after, before, strict=True)]
        table.add_row(name, found["score"], f"{found['beta']:g} %", str(found["neurons"]), *ratios)
    Console(width=160).print(table)


def whole_texts(source: str) -> list[str]:
    prompts = load_prompts(Source.parse(source, "SOURCE"), "SOURCE")
    return [prompt.text if prompt.answer is None else f"{prompt.text}\n{prompt.answer}" for prompt in prompts]


def mean_loss(folder: Path, texts: list[str]) -> float:
    """Mean loss of all tokens of the texts but the first of each, in nats."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    torch.manual_seed(0)  # only the authors' code draws from torch's generator
    total = tokens = 0.0
    for text in tqdm(texts, desc=folder.name, leave=False):
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :TEXT_TOKENS]
        with torch.inference_mode():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return total / tokens


if __name__ == "__main__":
    main()
