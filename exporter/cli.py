"""The command `unskill`. Heavy imports happen inside the commands, so that --help answers at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from exporter import __version__
from exporter.errors import BadInput, NothingSeparates, UnskillError
from exporter.settings import DEFAULT_REFUSAL, DTYPES, METHODS, ExportSettings


class NumberOr(click.ParamType):
    """A number, or one of some words."""

    def __init__(self, number: type, words: dict[str, Any]) -> None:
        self.number, self.words = number, words
        self.name = "|".join([*words, "N" if number is int else "X"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value is None or not isinstance(value, str):
            return value
        if value in self.words:
            return self.words[value]
        try:
            return self.number(value)
        except ValueError:
            self.fail(f"'{value}' is none of {self.name}", param, ctx)


def split_commas(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part.strip() for each in value for part in each.split(",") if part.strip())


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="unskill")
def cli() -> None:
    """Write a checkpoint of a causal language model that no longer shows a skill (arXiv:2503.21730)."""


@cli.command("export", short_help="Write a checkpoint that refuses a skill.")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--forget", multiple=True, metavar="SOURCE", help="Example prompts of the skill. Repeatable.")
@click.option("--retain", multiple=True, metavar="SOURCE", help="Prompts that must still be answered. Repeatable.")
@click.option("--method", type=click.Choice(METHODS), default="ksd", show_default=True)
@click.option("--layer", type=NumberOr(int, {"auto": None, "last": "last"}), default="auto", show_default=True)
@click.option(
    "--alpha",
    type=NumberOr(float, {"auto": None}),
    default="auto",
    show_default=True,
    help="Size of the hypercube in deviations.",
)
@click.option(
    "--target-block-rate",
    type=float,
    default=0.95,
    show_default=True,
    help="Share of further forget prompts that alpha is to hold.",
)
@click.option(
    "--max-false-block",
    type=float,
    default=0.01,
    show_default=True,
    help="Greatest share of harmless prompts with a refusal anywhere in their answer.",
)
@click.option("--refusal", default=DEFAULT_REFUSAL, show_default=True, help="The answer to the skill.")
@click.option(
    "--prompt-template",
    default="auto",
    show_default=True,
    metavar="auto|chat|TEXT",
    help="How prompts are formatted; {prompt} in TEXT is replaced.",
)
@click.option(
    "--formats",
    type=click.Choice(("mixed", "plain")),
    default="mixed",
    show_default=True,
    help="mixed: also under system prompts and as a second turn.",
)
@click.option(
    "--system-prompt",
    "system_prompts",
    multiple=True,
    metavar="TEXT",
    help="A system prompt of yours, added to the mixture. Repeatable.",
)
@click.option(
    "--everyday/--no-everyday",
    default=True,
    show_default=True,
    help="Use the packaged everyday prompts on the retain side.",
)
@click.option(
    "--everyday-without",
    multiple=True,
    metavar="KIND[,KIND]",
    callback=split_commas,
    help="Kinds of everyday prompts that belong to the skill.",
)
@click.option("--skip-long", is_flag=True, help="Leave out prompts longer than the model's context.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="Probe in this dtype.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--batch-size", type=NumberOr(int, {"auto": None}), default="auto", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace OUT, in one step, once the new one is whole.")
@click.option("--force", is_flag=True, help="Write even where no layer separates the skill.")
@click.option("--link", is_flag=True, help="Hard-link shards that do not change, instead of copying them.")
@click.option(
    "--fingerprints/--no-fingerprints", default=True, show_default=True, help="Record the sha256 of the weight files."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.option("--quiet", is_flag=True, help="No progress bars and remarks.")
def export_command(as_json: bool, quiet: bool, **options: Any) -> None:
    """Write the checkpoint OUT of MODEL (folder or Hub id) that refuses the skill of the --forget prompts.

    SOURCE is PATH_OR_DATASET_ID[,key=value...] with keys column, split, name, revision, limit, template; .jsonl, .csv,
    .parquet, .txt or a Hub dataset.

    \b
    unskill export MODEL OUT --forget maths.jsonl,column=question --retain code.jsonl
    """
    from exporter.export import export
    from exporter.sources import read_template

    options["prompt_template"] = read_template(options["prompt_template"], "--prompt-template")
    settings = ExportSettings(quiet=quiet, **options)

    try:
        summary = export(settings, lambda text: None if quiet else click.echo(text, err=True))
    except NothingSeparates as error:
        show(error.summary, as_json)
        raise
    show(summary | {"out": str(settings.out)}, as_json)


def show(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from exporter.summary import print_summary

    console = Console(width=None if sys.stdout.isatty() else 120)
    print_summary(summary, console)
    if "out" in summary:
        click.echo(
            f'\nWrote {summary["out"]}: AutoModelForCausalLM.from_pretrained("{summary["out"]}", '
            "trust_remote_code=True)"
        )


def main() -> None:
    """Entry point: 0 done, 1 failed while running, 2 wrong usage or bad input, 130 on Ctrl-C; errors are one line."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"unskill: error: {error.format_message()}", err=True)
        code = BadInput.exit_code
    except UnskillError as error:
        click.echo(f"unskill: error: {error}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("unskill: interrupted, nothing was changed", err=True)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
