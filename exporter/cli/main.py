"""The command `unskill`. Heavy imports happen inside the commands, so that --help answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter import __version__
from exporter.cli.commands.chat import chat_command
from exporter.cli.commands.inspect import inspect_command
from exporter.cli.commands.onnx import build_ops_command, onnx_command
from exporter.cli.commands.push import push_command, show_push
from exporter.cli.commands.report import report_command
from exporter.cli.commands.restore import restore_command
from exporter.cli.commands.verify import verify_command
from exporter.cli.options import AUTO_FLOAT, LAYER, NumberOr, machine, prompt_template, running, sources
from exporter.common.errors import BadInput, NothingSeparates, RunFailed, UnskillError
from exporter.common.staging import beside
from exporter.common.text import echo_json, printable
from exporter.recipes.settings import COMPATS, DEFAULT_REFUSAL, DRAWS, METHODS, SCORES

if TYPE_CHECKING:
    from exporter.recipes.recorded import Recorded
    from exporter.recipes.settings import ExportSettings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="unskill")
def cli() -> None:
    """Write a checkpoint of a causal language model that no longer shows a skill (arXiv:2503.21730)."""


@cli.command("export", short_help="Write a checkpoint that no longer shows a skill.")
@click.argument("model", required=False)
@click.argument("out", required=False, type=click.Path(path_type=Path))
@sources
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="ksd",
    show_default=True,
    help="ksd: refuse its prompts. na: move neurons away from it. sp: zero neurons, the paper's baseline.",
)
@click.option("--layer", type=LAYER, default="auto", show_default=True, help="Layer of the hypercubes.")
@click.option(
    "--alpha", type=AUTO_FLOAT, default="auto", show_default=True, help="Size of the hypercube in deviations."
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
@click.option("--beta", type=AUTO_FLOAT, default="auto", show_default=True, help="Per cent of all neurons to change.")
@click.option(
    "--score",
    type=click.Choice(("auto", *SCORES)),
    default="auto",
    show_default=True,
    help="By what neurons are chosen.",
)
@click.option(
    "--max-retain-loss",
    type=float,
    default=0.01,
    show_default=True,
    help="Greatest rise of the token loss of held-out retain texts, in nats.",
)
@click.option(
    "--draws",
    type=click.Choice(DRAWS),
    default="sampled",
    show_default=True,
    help="expected: a neuron is moved whenever that is more likely than not.",
)
@click.option(
    "--compat",
    type=click.Choice(COMPATS),
    help="official: Neuron Adjust as the authors' code has it, to compare with.",
)
@click.option(
    "--statistics",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What unskill probe found for the same model and prompts.",
)
@click.option("--refusal", default=DEFAULT_REFUSAL, show_default=True, help="The answer to the skill.")
@prompt_template
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
@running
@click.option("--force", is_flag=True, help="Write even where no layer separates the skill, or no beta is borne.")
@click.option("--link", is_flag=True, help="Hard-link shards that do not change, instead of copying them.")
@click.option(
    "--fingerprints/--no-fingerprints", default=True, show_default=True, help="Record the sha256 of the weight files."
)
@click.option("--figures/--no-figures", default=True, show_default=True, help="Draw charts for the model card.")
@click.option("--onnx", "and_onnx", is_flag=True, help="Also write OUT-onnx, as unskill onnx does.")
@click.option("--push", "repo", metavar="USER/NAME", help="Also push OUT to the Hub, as unskill push does.")
@click.option("--public", is_flag=True, help="With --push: make the repo public, once the commit is made.")
@click.pass_context
def export_command(
    context: click.Context,
    /,
    recipe: Path | None,
    data: tuple[Path, ...],
    as_json: bool,
    and_onnx: bool,
    repo: str | None,
    public: bool,
    **flags: Any,
) -> None:
    """Write the checkpoint OUT of MODEL (folder or Hub id) that no longer shows the skill of the --forget prompts.

    SOURCE is PATH_OR_DATASET_ID[,key=value...] with keys column, answer, split, name, revision, limit, template,
    sha256; .jsonl, .csv, .parquet, .txt or a Hub dataset. Neurons (na, sp) are chosen by whole texts: answer= names
    the column that follows the prompt. A checkpoint's own reproduce/recipe.toml makes it again; beside a recipe that
    names the model, OUT alone is enough.

    \b
    unskill export MODEL OUT --forget maths.jsonl,column=question --retain code.jsonl
    unskill export AGAIN --recipe OUT/reproduce/recipe.toml
    """
    from exporter.pipeline.run import export

    settings, recorded = settings_of(context, recipe, data, flags)
    graph = pushing = None
    if and_onnx:
        from exporter.cli.commands.after_export_onnx import settings_to_write

        graph = settings_to_write(settings)
    if repo is not None:
        from exporter.cli.commands.after_export_push import push_exported, settings_to_push

        pushing = settings_to_push(settings, repo, public)
    elif public:
        raise BadInput("--public: is about the repo of --push USER/NAME, which is missing")
    remark = remarks(settings.quiet)
    try:
        summary = export(settings, remark, recorded) | {"out": str(settings.out)}
    except NothingSeparates as error:
        show(error.summary, as_json)
        raise
    try:
        if graph is not None:
            from exporter.cli.commands.after_export_onnx import write_exported

            write_exported(graph, summary, remark)
        if pushing is not None:
            summary["push"] = push_exported(pushing, remark)
    finally:
        show(summary, as_json)  # whatever came after it, the checkpoint is there
        if "onnx" in summary and not as_json:
            from exporter.cli.tables.onnx import show_check

            show_check(summary["onnx"], as_json)
    if pushing is not None and not as_json:
        show_push(summary["push"])


@cli.command("probe", short_help="Statistics of neurons, for export --statistics.")
@click.argument("model", required=False)
@click.argument("out", required=False, type=click.Path(path_type=Path))
@sources
@running
@click.pass_context
def probe_command(
    context: click.Context, /, recipe: Path | None, data: tuple[Path, ...], as_json: bool, **flags: Any
) -> None:
    """Write the statistics file OUT of MODEL: mean and deviation of every neuron over forget and retain texts.

    Probed are the texts that an export with the same sources and seed would probe, and no held-out ones. An
    interrupted probe goes on where it stopped when it is started again.

    \b
    unskill probe MODEL maths.safetensors --forget maths.jsonl,column=question,answer=answer --retain code.jsonl
    unskill export MODEL LESS --method na --statistics maths.safetensors \\
        --forget maths.jsonl,column=question,answer=answer --retain code.jsonl
    """
    from exporter.pipeline.probe import probe

    settings, recorded = settings_of(context, recipe, data, flags, {} if recipe else {"method": "na"})
    found = probe(settings, remarks(settings.quiet), recorded) | {"out": str(settings.out)}
    if as_json:
        echo_json(found)
        return
    for name, sides in found["skills"].items():
        for side, each in sides.items():
            click.echo(f"{name}, {side}: {each['texts']} texts, {each['tokens']} tokens")
    click.echo(f"Wrote {settings.out}: unskill export ... --statistics {settings.out}")


@cli.command("evaluate", short_help="What a checkpoint forgot, and what that cost.")
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
@click.option("--limit", type=NumberOr(int, {"all": None}), default="200", show_default=True, help="Items a source.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results; default CHECKPOINT-evaluation.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Folder of an earlier evaluation, with which the checkpoint is compared.",
)
@prompt_template
@click.option(
    "--formats",
    type=click.Choice(("plain", "mixed")),
    default="plain",
    show_default=True,
    help="mixed: --forget and --retain also under system prompts and as a second turn.",
)
@machine
@click.option("--overwrite", is_flag=True, help="Begin anew instead of going on with what is in the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.option("--quiet", is_flag=True, help="No progress bars and remarks.")
def evaluate_command(checkpoint: str, out: Path | None, as_json: bool, **flags: Any) -> None:
    """Measure CHECKPOINT (folder or Hub id), and its base beside it, on sources of any kind.

    SOURCE is what unskill export takes; each flag that takes one is repeatable. Results are kept item by item in the
    folder --out, and the same command goes on where an interrupted one stopped.

    \b
    unskill evaluate OUT --base MODEL --forget maths.jsonl,column=question --retain code.jsonl --choice mmlu.jsonl
    """
    from exporter.evaluation.plan import KINDS
    from exporter.evaluation.run import EvaluateSettings, evaluate

    sources = {kind: flags.pop(kind) for kind in KINDS}
    settings = EvaluateSettings(checkpoint, out or beside(checkpoint, "-evaluation"), sources, **flags)
    summary = evaluate(settings, remarks(settings.quiet))
    if as_json:
        echo_json(summary)
        return
    from rich.console import Console

    from exporter.cli.tables.evaluation import print_evaluation

    print_evaluation(summary, Console(width=None if sys.stdout.isatty() else 160))
    click.echo(f"\nResults by item: {settings.out}")


cli.add_command(report_command)
cli.add_command(onnx_command)
cli.add_command(build_ops_command)
cli.add_command(verify_command)
cli.add_command(restore_command)
cli.add_command(inspect_command)
cli.add_command(push_command)
cli.add_command(chat_command)


def settings_of(
    context: click.Context,
    recipe: Path | None,
    data: tuple[Path, ...],
    flags: dict[str, Any],
    defaults: dict[str, Any] | None = None,
) -> tuple[ExportSettings, Recorded | None]:
    """Settings from the recipe, if there is one, and the flags that were given; `defaults` are the weakest.

    Also what the recipe has recorded, where an export has written it.
    """
    from exporter.recipes.recipe import merged_settings, read_recipe, recorded_in
    from exporter.recipes.recorded import locate

    default = click.core.ParameterSource.DEFAULT
    given = {name: value for name, value in flags.items() if context.get_parameter_source(name) != default}
    if given.get("score") == "auto":
        given["score"] = None
    if data and not recipe:
        raise BadInput("--data: is where the files of a recipe are looked for; give --recipe too")
    values = read_recipe(recipe) if recipe else {}
    if "model" in values and "model" in given and "out" not in given:
        if "out" in values:
            raise BadInput("MODEL OUT: the recipe names both; give both on the command line, or neither")
        given["out"] = Path(given.pop("model"))  # one argument alone is what the recipe does not say
    if recipe:
        values = locate(values, given, data)
    return merged_settings({**(defaults or {}), **values}, given), recorded_in(values, given)


def remarks(quiet: bool) -> Callable[[str], None]:
    return lambda text: None if quiet else click.echo(text, err=True)


def show(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        echo_json(summary)
        return
    from rich.console import Console

    from exporter.cli.tables.export import print_summary

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
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has seen enough (`| head`). What is still in the buffer must not fail at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = RunFailed.exit_code
    except click.ClickException as error:
        click.echo(f"unskill: error: {printable(error.format_message())}", err=True)
        code = BadInput.exit_code
    except UnskillError as error:
        click.echo(f"unskill: error: {printable(str(error))}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("unskill: interrupted", err=True)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
