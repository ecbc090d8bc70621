"""Does every runtime compute what the checkpoint does? Logits of the token after each of many prompts.

    python compare.py ask CHECKPOINT WORK --forget gsm8k/test.jsonl,column=question,limit=200 \\
        --retain mbpp/test.jsonl,column=text,limit=50
    python by_onnxruntime.py FOLDER WORK ort                   (any ONNX Runtime; needs numpy and onnxruntime alone)
    python by_onnxruntime.py FOLDER WORK kernels LIBRARY.so    (what unskill build-ops has built)
    python by_genai.py FOLDER WORK genai
    node by_transformers_js.mjs FOLDER WORK transformers.js
    python compare.py judge WORK

WORK holds prompts.json (token ids) and, by the name of each runtime, its logits as float32. FOLDER is what unskill
onnx wrote. A prompt that torch decides by rounding (a neuron or a key within 1e-5 of its threshold) is listed where
another runtime differs, and not counted.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from exporter.models.loading import load_checkpoint
from exporter.onnx.check.runners import Torch
from exporter.prompts.formats import PLAIN, Formatter
from exporter.prompts.sources import Source, load_prompts

TOLERANCE = 1e-3


@click.group()
def cli() -> None:
    """Compare runtimes by the logits after prompts."""


@cli.command()
@click.argument("checkpoint")
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--forget", multiple=True, metavar="SOURCE")
@click.option("--retain", multiple=True, metavar="SOURCE")
def ask(checkpoint: str, work: Path, forget: tuple[str, ...], retain: tuple[str, ...]) -> None:
    """Write the prompts' token ids and the logits that torch gives, in float32."""
    loaded = load_checkpoint(checkpoint, "float32", "cpu")
    formatter = Formatter(loaded.tokenizer, formats=PLAIN)
    sources = [("--forget", spec) for spec in forget] + [("--retain", spec) for spec in retain]
    asked = [
        {"source": flag, "ids": list(query.ids)}
        for flag, spec in sources
        for query in formatter.format(load_prompts(Source.parse(spec, flag), flag), flag)
    ]
    work.mkdir(parents=True, exist_ok=True)
    runner, rows = Torch(loaded.model), []
    for each in asked:
        rows.append(runner.forward(np.array([each["ids"]]))[0][0, -1])
        each["close"] = int(runner.close[0])
    np.stack(rows).astype(np.float32).tofile(work / "torch.logits")
    about = {"prompts": asked, "refusal": loaded.refusal_id, "vocabulary": len(rows[0])}
    (work / "prompts.json").write_text(json.dumps(about), encoding="utf-8")


@cli.command()
@click.argument("work", type=click.Path(path_type=Path, exists=True))
def judge(work: Path) -> None:
    """Print how far each runtime is from torch."""
    about = json.loads((work / "prompts.json").read_text(encoding="utf-8"))
    close = np.array([each["close"] > 0 for each in about["prompts"]])
    logits = {
        path.stem: np.fromfile(path, np.float32).reshape(len(close), about["vocabulary"])
        for path in sorted(work.glob("*.logits"))
    }
    expected = logits.pop("torch")
    table = Table(title=f"{len(close)} prompts: the next token's logits against torch", title_justify="left")
    for name in (
        "runtime",
        "greatest difference",
        "same next token",
        "refused",
        "torch",
        "same refusals",
        "by rounding",
    ):
        table.add_column(name)
    refused = {name: each[:, about["refusal"]] > -25 for name, each in {**logits, "torch": expected}.items()}
    for name, found in logits.items():
        difference = np.abs(found - expected).max(-1)
        counted = ~(close & (difference > TOLERANCE))
        same = (found.argmax(-1) == expected.argmax(-1))[counted]
        alike = (refused[name] == refused["torch"])[counted]
        table.add_row(
            name,
            f"{difference[counted].max():.1e}",
            f"{same.sum()}/{len(same)}",
            *(str(refused[side].sum()) for side in (name, "torch")),
            f"{alike.sum()}/{len(alike)}",
            ", ".join(map(str, np.flatnonzero(~counted))) or "none",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    cli()
