"""The command `unskill evaluate`; like all of them it imports nothing heavy before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from exporter.cli.options import as_json, options_of, recorded_template, shared
from exporter.cli.output import echo_json, messages
from exporter.common.files import beside
from exporter.evaluation.settings import KINDS, EvaluateSettings


@click.command("evaluate", short_help="What a checkpoint forgot, and what that cost.")
@click.argument("checkpoint")
@click.option("--base", metavar="MODEL", help="The model that it was made of, to be measured beside it.")
@click.option("--forget", multiple=True, metavar="SOURCE", help="Prompts that should be refused.")
@click.option("--retain", multiple=True, metavar="SOURCE", help="Prompts that should not.")
@click.option("--text", multiple=True, metavar="SOURCE", help="Texts for perplexity, their first 384 tokens.")
@click.option("--choice", multiple=True, metavar="SOURCE", help="Multiple choice in MMLU's form.")
@click.option("--shots", metavar="SOURCE", help="Solved examples for --choice: the first five of each subject.")
@click.option("--gsm8k", multiple=True, metavar="SOURCE", help="Sums: exact match of the last number.")
@click.option("--code", multiple=True, metavar="SOURCE", help="MBPP or HumanEval: pass@1.")
@click.option("--qa", multiple=True, metavar="SOURCE", help="Questions on texts, as XQuAD: exact match and F1.")
@click.option("--allow-code-execution", is_flag=True, help="Run what the models write for --code, confined.")
@options_of(EvaluateSettings)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results; default CHECKPOINT-evaluation.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Folder of an earlier evaluation, with which the checkpoint is compared.",
)
@recorded_template
@click.option(
    "--formats",
    type=click.Choice(("plain", "mixed")),
    default="plain",
    show_default=True,
    help="mixed: --forget and --retain also under system prompts and as a second turn.",
)
@shared("seed", "dtype", "device", "batch_size", "quiet")
@as_json
@click.option("--overwrite", is_flag=True, help="Begin anew instead of going on with what is in the folder.")
def evaluate_command(checkpoint: str, out: Path | None, as_json: bool, **flags: Any) -> None:
    """Measure CHECKPOINT (folder or Hub id), and its base beside it, on sources of any kind.

    SOURCE is what unskill export takes; each flag that takes one is repeatable. Results are kept item by item in the
    folder --out, and the same command goes on where an interrupted one stopped.

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
    from exporter.cli.tables.evaluation import print_evaluation

    print_evaluation(summary, console(160))
    click.echo(f"\nResults by item: {settings.out}")
