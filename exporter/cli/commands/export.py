"""The command `unskill export`. Heavy imports wait until it runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli.commands.push import show_push
from exporter.cli.options import OUT, Grouped, as_json, options_of, recipe
from exporter.cli.output import echo_json, messages
from exporter.common.errors import BadInput, Interrupted, Rejected, RunFailed, UnskillError
from exporter.common.files import sibling
from exporter.common.text import Notify
from exporter.onnx.settings import OnnxSettings, check_out
from exporter.recipes.settings import ExportSettings, SkillSettings
from exporter.recipes.templates import write_template

if TYPE_CHECKING:
    from exporter.checkpoint.findings import Plan
    from exporter.checkpoint.push.push import PushSettings
    from exporter.recipes.recorded import Recorded


GROUPS = {
    "Basic": ("--skill", "--forget", "--retain", "--describe", "--recipe"),
    "Skill and prompts": (
        *("--name", "--not", "--save-prompts", "--read-prompts", "--generator", "--everyday", "--everyday-without"),
        *("--refusal", "--prompt-template", "--formats", "--system-prompt", "--template-args"),
        *("--skip-long", "--data"),
    ),
    "Limits": (
        *("--target-block-rate", "--max-false-block", "--max-near-miss", "--max-after-refusal", "--max-retain-loss"),
        "--force",
    ),
    "Methods": ("--method", "--region", "--layer", "--alpha", "--beta", "--score", "--effort"),
    "Machine": ("--dtype", "--device", "--batch-size", "--threads", "--seed", "--cache"),
    "Output": (
        *("--dry-run", "--overwrite", "--quiet", "--json", "--verbose", "--figures", "--onnx", "--push", "--public"),
        *("--base-model", "--revision", "--link", "--fingerprints"),
    ),
    "Research": ("--draws", "--compat", "--statistics"),
}
"""The options as --help-all shows them; --help shows the first group."""


@click.command("export", cls=Grouped, groups=GROUPS, short_help="Write a checkpoint that no longer shows a skill.")
@click.argument("model", required=False)
@click.argument("out", required=False, type=OUT)
@options_of(SkillSettings)
@recipe
@options_of(ExportSettings)
@as_json
@click.option("--verbose", is_flag=True, help="Print all tables, which OUT has too, before the result.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and how long it would take; write nothing.")
@click.option("--onnx", "and_onnx", is_flag=True, help="Also write OUT-onnx, as unskill onnx does.")
@click.option("--push", "repo", metavar="USER/NAME", help="Also push OUT to the Hub, as unskill push does.")
@click.option("--public", is_flag=True, help="With --push: make the repo public after the commit.")
@click.pass_context
def export_command(
    context: click.Context,
    /,
    recipe: Path | None,
    data: tuple[Path, ...],
    as_json: bool,
    verbose: bool,
    dry_run: bool,
    and_onnx: bool,
    repo: str | None,
    public: bool,
    **flags: Any,
) -> None:
    """Write the checkpoint OUT of MODEL (folder or Hub id) that no longer shows the skill of the --forget prompts,
    or a packaged skill, as with --skill maths, or one in words, as with --describe "arithmetic word problems".

    SOURCE is PATH_OR_DATASET_ID[,key=value...] with keys column, answer, split, name, revision, limit, template,
    sha256; .jsonl, .json, .csv, .tsv, .parquet, .arrow, .txt (text also as .gz, .bz2, .xz, .zst) or a Hub dataset. Of
    a chat the prompt is the user's last message. Neurons (na, sp) are chosen by whole texts: answer= names the column
    that follows the prompt. A checkpoint's own reproduce/recipe.toml repeats its export; with a recipe that
    names the model, OUT alone is enough.

    \b
    unskill export MODEL OUT --forget maths.jsonl,column=question --retain code.jsonl
    unskill export AGAIN --recipe OUT/reproduce/recipe.toml
    unskill export MODEL BOX --region hypercube --forget maths.jsonl,column=question --retain code.jsonl
    """
    from exporter.pipeline.plan import plan

    settings, recorded = settings_of(context, recipe, data, flags)
    graph = settings_to_write(settings) if and_onnx else None
    pushing = settings_to_push(settings, repo, public) if repo is not None else None
    if public and repo is None:
        raise BadInput("--public: needs the repo of --push USER/NAME, which is missing")
    notify = messages(settings.quiet)
    planned = plan(settings, notify, recorded)
    if dry_run:
        show_preview(planned, as_json, notify)
        return
    from exporter.pipeline.run import export_planned  # not before: it imports torch

    try:
        summary = export_planned(planned, notify)
    except Rejected as error:
        show(error.summary, as_json, tables=True)
        raise
    found = summary.to_json() | {"out": str(settings.out)}
    try:
        if graph is not None:
            write_exported(graph, found, notify)
        if pushing is not None:
            found["push"] = push_exported(pushing, notify)
    finally:
        show(found, as_json, tables=verbose)  # the checkpoint exists, even if a later step failed
        if "onnx" in found and not as_json:
            from exporter.cli.tables.onnx import show_check

            show_check(found["onnx"], as_json)
    if pushing is not None and not as_json:
        show_push(found["push"])


def show_preview(planned: Plan, as_json: bool, notify: Notify) -> None:
    """What --dry-run prints."""
    from exporter.pipeline.preview import preview

    found = preview(planned, notify)
    if as_json:
        echo_json(found.to_json())
    else:
        click.echo(found.text())


def settings_of(
    context: click.Context,
    recipe: Path | None,
    data: tuple[Path, ...],
    flags: dict[str, Any],
    defaults: dict[str, Any] | None = None,
) -> tuple[ExportSettings, Recorded | None]:
    """Settings from `defaults`, the recipe, if any, and the given flags, each overriding those before it.

    Also what the recipe records, if an export wrote it. Raises BadInput for a flag that no skill's method uses.
    """
    from exporter.pipeline.inputs import locate
    from exporter.recipes.recipe import merged_settings, read_recipe, recorded_in
    from exporter.recipes.used import check_used

    default = click.core.ParameterSource.DEFAULT
    given = {name: value for name, value in flags.items() if context.get_parameter_source(name) != default}
    if data and not recipe:
        raise BadInput("--data: says where to look for the files of a recipe; give --recipe too")
    values = read_recipe(recipe) if recipe else {}
    if "model" in values and "model" in given and "out" not in given:
        if "out" in values:
            raise BadInput("MODEL OUT: the recipe names both; give both on the command line, or neither")
        given["out"] = Path(given.pop("model"))  # a single argument is what the recipe lacks
    if recipe:
        values = locate(values, given, data)
    settings = merged_settings({**(defaults or {}), **values}, given)
    check_used(settings, given)
    return settings, recorded_in(values, given)


def show(found: dict[str, Any], as_json: bool, *, tables: bool) -> None:
    """Print the summary; in `found` with "out", if a checkpoint was written, and what followed."""
    if as_json:
        echo_json(found)
        return
    from exporter.checkpoint.summary import Summary
    from exporter.cli.tables.console import console
    from exporter.cli.tables.export import print_summary

    print_summary(Summary.from_json(found), console(120), tables)
    if out := found.get("out"):
        click.echo(f'\nWrote {out}: AutoModelForCausalLM.from_pretrained("{out}", trust_remote_code=True)')
        click.echo(f"Talk to it: unskill chat {shlex.quote(out)}")


def settings_to_write(export: ExportSettings) -> OnnxSettings:
    """For the checkpoint of an export. Raises whatever would later prevent the ONNX folder from being written."""
    if export.compat is not None:
        raise BadInput(
            "--onnx: --compat draws with torch's generator, which ONNX does not have; leave one of the two out"
        )
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


def write_exported(settings: OnnxSettings, summary: dict[str, Any], notify: Notify) -> None:
    """As `write_onnx`; on Ctrl-C the message says that the checkpoint exists. summary: of the export; gets the result
    as "onnx", even if graph and checkpoint do not agree."""
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
    """Raises BadInput if a push cannot even begin: better now than after the export."""
    from exporter.checkpoint.push.push import PushSettings, find_token

    found = PushSettings(settings.out, repo, public=public, quiet=settings.quiet)
    find_token()
    return found


def push_exported(settings: PushSettings, notify: Notify) -> dict[str, Any]:
    """As `push`; every error says that the checkpoint exists, and none is bad input."""
    from exporter.checkpoint.push.push import push
    from exporter.verification.whole import check_whole

    written = f"{settings.out} is written, but"
    try:
        return push(settings, check_whole, notify)
    except KeyboardInterrupt:
        raise Interrupted(f"{written} interrupted before the push; go on with: {settings.command}") from None
    except Interrupted as error:
        raise Interrupted(f"{written} the push was {error}") from None
    except UnskillError as error:
        raise RunFailed(f"{written} not pushed: {error}") from None
