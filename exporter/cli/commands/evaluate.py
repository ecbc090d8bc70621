"""The command `unskill evaluate`. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from exporter.cli.options import OUT, as_json, options_of
from exporter.cli.output import echo_json, messages
from exporter.common.files import beside
from exporter.evaluation.settings import KINDS, EvaluateSettings


@click.command("evaluate", short_help="What a checkpoint forgot, and what that cost.")
@click.argument("checkpoint")
@click.option("--forget", multiple=True, metavar="SOURCE", help="Prompts that should be refused.")
@click.option("--retain", multiple=True, metavar="SOURCE", help="Prompts that should not.")
@click.option("--text", multiple=True, metavar="SOURCE", help="Texts for perplexity, their first 384 tokens.")
@click.option("--choice", multiple=True, metavar="SOURCE", help="Multiple choice in MMLU's form.")
@click.option("--gsm8k", multiple=True, metavar="SOURCE", help="Word problems: exact match of the last number.")
@click.option("--code", multiple=True, metavar="SOURCE", help="MBPP or HumanEval: pass@1.")
@click.option("--qa", multiple=True, metavar="SOURCE", help="Questions on texts, as XQuAD: exact match and F1.")
@click.option("--out", type=OUT, help="Folder of the results; default CHECKPOINT-evaluation.")
@options_of(EvaluateSettings)
@as_json
def evaluate_command(checkpoint: str, out: Path | None, as_json: bool, **flags: Any) -> None:
    """Measure CHECKPOINT (folder or Hub id), and its base beside it, on sources of any kind.

    SOURCE is as for unskill export; flags that take one are repeatable, but for --shots. Results are kept item by item
    in the folder --out, and the same command resumes an interrupted evaluation.

    \b
    unskill evaluate OUT --base MODEL --forget maths.jsonl,column=question --retain code.jsonl --choice mmlu.jsonl
    """
    sources = {kind: flags.pop(kind) for kind in KINDS}
    settings = EvaluateSettings(checkpoint, out or beside(checkpoint, "-evaluation"), sources, **flags)

    from exporter.evaluation.run import evaluate

    summary = evaluate(settings, messages(settings.quiet))
    if as_json:
        echo_json(summary)
        return
    from exporter.cli.tables.console import console
    from exporter.cli.tables.evaluate import print_evaluation

    print_evaluation(summary, console(160))
    click.echo(f"\nResults by item: {settings.out}")
