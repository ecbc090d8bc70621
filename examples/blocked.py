"""How many prompts a checkpoint refuses: the share after whose last token R is the most likely token.

    python examples/blocked.py CHECKPOINT gsm8k/test.jsonl,column=question mbpp/test.jsonl,column=text
    python examples/blocked.py CHECKPOINT gsm8k/test.jsonl,column=question,limit=200 --dtype bfloat16 \
        --system-prompt "Answer in one sentence." --after "Hi there!" "Hello! What can I do for you?"

A SOURCE is what `unskill export` takes. Only transformers reads the checkpoint; unskill reads and formats the prompts.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.common.rates import rate
from exporter.prompts.formats import Formatter
from exporter.prompts.sources import Source, load_prompts
from exporter.prompts.splits import deduplicate
from exporter.recipes.settings import DTYPES
from exporter.recipes.templates import read_template

BATCH = 8


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("sources", nargs=-1, required=True)
@click.option("--system-prompt", help="Put every prompt under this system prompt.")
@click.option("--after", nargs=2, metavar="USER ASSISTANT", help="Put every prompt after this exchange.")
@click.option("--prompt-template", default="auto", help="As for unskill export.")
@click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True)
def main(
    checkpoint: Path,
    sources: tuple[str, ...],
    system_prompt: str | None,
    after: tuple[str, str] | None,
    prompt_template: str,
    dtype: str,
) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, trust_remote_code=True, dtype=dtype if dtype == "auto" else getattr(torch, dtype)
    )
    template = read_template(prompt_template, "--prompt-template")
    formatter = Formatter(tokenizer, template=template)
    history = []
    if after:
        history = [{"role": "user", "content": after[0]}, {"role": "assistant", "content": after[1]}]
    table = Table("source", "refused", "of", "share", "95 % interval", title=f"{checkpoint.name}, {model.dtype}")
    for source in sources:
        prompts = deduplicate(load_prompts(Source.parse(source, "SOURCE"), "SOURCE", partial(click.echo, err=True)))
        rows = [formatter.render(prompt.text, system=system_prompt, history=history) for prompt in prompts]
        found = rate(refused(model, tokenizer, rows), len(rows))
        interval = f"{found.low:.1%} - {found.high:.1%}"
        table.add_row(source, str(found.hits), str(found.total), f"{found.rate:.1%}", interval)
    Console(width=120).print(table)


def refused(model: Any, tokenizer: Any, rows: list[tuple[int, ...]]) -> int:
    """Number of rows of token ids after which R leads, in left-padded batches of similar length."""
    rows = sorted(rows, key=len, reverse=True)
    hits = 0
    for start in tqdm(range(0, len(rows), BATCH), leave=False):
        batch = {"input_ids": [list(row) for row in rows[start : start + BATCH]]}
        inputs = tokenizer.pad(batch, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs, logits_to_keep=1).logits
        hits += int((logits[:, -1].argmax(-1) == model.config.unskill["refusal_token_id"]).sum())
    return hits


if __name__ == "__main__":
    main()
