"""The command `unskill export`; like all of them it imports nothing heavy before it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli.commands.push import check_whole, show_push
from exporter.cli.options import as_json, options_of, recipe
from exporter.cli.output import echo_json, messages
from exporter.common.errors import BadInput, Interrupted, Rejected, RunFailed, UnskillError
from exporter.common.files import sibling
from exporter.onnx.settings import OnnxSettings, check_out
from exporter.recipes.settings import ExportSettings, SkillSettings
from exporter.recipes.templates import write_template

if TYPE_CHECKING:
    from exporter.checkpoint.push.push import PushSettings
    from exporter.recipes.recorded import Recorded


@click.command("export", short_help="Write a checkpoint that no longer shows a skill.")
@click.argument("model", required=False)
@click.argument("out", required=False, type=click.Path(path_type=Path))
@options_of(SkillSettings)
@recipe
@options_of(ExportSettings)
@as_json
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
        graph = settings_to_write(settings)
    if repo is not None:
        pushing = settings_to_push(settings, repo, public)
    elif public:
        raise BadInput("--public: is about the repo of --push USER/NAME, which is missing")
    notify = messages(settings.quiet)
    try:
        summary = export(settings, notify, recorded)
    except Rejected as error:
        show(error.summary, as_json)
        raise
    told = summary.to_json() | {"out": str(settings.out)}
    try:
        if graph is not None:
            write_exported(graph, told, notify)
        if pushing is not None:
            told["push"] = push_exported(pushing, notify)
    finally:
        show(told, as_json)  # whatever came after it, the checkpoint is there
        if "onnx" in told and not as_json:
            from exporter.cli.tables.onnx import show_check

            show_check(told["onnx"], as_json)
    if pushing is not None and not as_json:
        show_push(told["push"])


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
    from exporter.pipeline.inputs import locate
    from exporter.recipes.recipe import merged_settings, read_recipe, recorded_in

    default = click.core.ParameterSource.DEFAULT
    given = {name: value for name, value in flags.items() if context.get_parameter_source(name) != default}
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


def show(told: dict[str, Any], as_json: bool) -> None:
    """Print the summary, as JSON with what else there is to tell: "out", where a checkpoint was written."""
    if as_json:
        echo_json(told)
        return
    from exporter.checkpoint.summary import Summary
    from exporter.cli.tables.console import console
    from exporter.cli.tables.export import print_summary

    print_summary(Summary.from_json(told), console(120))
    if "out" in told:
        click.echo(
            f'\nWrote {told["out"]}: AutoModelForCausalLM.from_pretrained("{told["out"]}", trust_remote_code=True)'
        )


def settings_to_write(export: ExportSettings) -> OnnxSettings:
    """For the checkpoint that an export is to write. Raises what would keep the ONNX folder from being written."""
    if export.compat is not None:
        raise BadInput("--onnx: draws of --compat are torch's own, which ONNX does not have; leave one of the two out")
    settings = OnnxSettings(
        str(export.out),
        sibling(export.out, "-onnx"),
        forget=tuple(source for skill in export.skills for source in skill.forget[:1]),
        prompt_template=write_template(export.prompt_template),
        overwrite=export.overwrite,
        quiet=export.quiet,
    )
    check_out(settings, 0)
    return settings


def write_exported(settings: OnnxSettings, summary: dict[str, Any], notify: Callable[[str], None]) -> None:
    """As `write_onnx`; Ctrl-C says that the checkpoint is there. summary: of the export; gets what was found, also
    where graph and checkpoint do not agree, as "onnx"."""
    from exporter.onnx.writing import write_onnx

    try:
        summary["onnx"] = write_onnx(settings, notify) | {"out": str(settings.out)}
    except Rejected as error:
        summary["onnx"] = error.summary
        raise
    except KeyboardInterrupt:
        out = settings.checkpoint
        raise Interrupted(f"{out} is written, but not its ONNX folder; go on with: unskill onnx {out}") from None


def settings_to_push(settings: ExportSettings, repo: str, public: bool) -> PushSettings:
    """Raises BadInput where a push cannot even begin: better now than after the export."""
    from exporter.checkpoint.push.push import PushSettings, find_token

    found = PushSettings(settings.out, repo, public=public, quiet=settings.quiet)
    find_token()
    return found


def push_exported(settings: PushSettings, notify: Callable[[str], None]) -> dict[str, Any]:
    """As `push`; every error says that the checkpoint is there, and is no longer bad input."""
    from exporter.checkpoint.push.push import push

    written = f"{settings.out} is written, but"
    try:
        return push(settings, check_whole, notify)
    except KeyboardInterrupt:
        raise Interrupted(f"{written} interrupted before the push; go on with: {settings.command}") from None
    except Interrupted as error:
        raise Interrupted(f"{written} the push was {error}") from None
    except UnskillError as error:
        raise RunFailed(f"{written} not pushed: {error}") from None
