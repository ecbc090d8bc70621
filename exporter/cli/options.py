"""Command-line options: built from declared settings, and those that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from exporter.recipes.declared import Setting, declared
from exporter.recipes.settings import ExportSettings


class _Value(click.ParamType):
    """The type of a declared setting's option."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.name = {str: "text", int: "integer", float: "float", Path: "file"}[setting.kind]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        others = [each for each in (ctx.command.params if ctx else ()) if isinstance(each, click.Option)]
        if any(value in (*each.opts, *each.secondary_opts) for each in others):
            # click takes it for the value that was left out
            self.fail(f"{value!r} is a flag; give a value before it", param, ctx)
        try:
            return self.setting.from_text(value) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value!r} is not {self.setting.wanted}", param, ctx)


class _NamedPath(click.Path):
    """A path that is not empty: Path("") would be the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name is empty; name a folder or file", param, ctx)
        return super().convert(value, param, ctx)


OUT = _NamedPath(path_type=Path)
"""The type of what a command writes."""


def options_of(cls: type, only: Collection[str] = ()) -> Callable[[Any], Any]:
    """A decorator with options for all settings of a dataclass that have a help text, or for `only` those named."""
    found = [each for each in declared(cls).values() if each.help is not None and (not only or each.name in only)]
    return options(*(_option(each) for each in found))


def options(*chosen: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order of --help."""

    def decorate(function: Any) -> Any:
        for option in reversed(chosen):
            function = option(function)
        return function

    return decorate


def _option(setting: Setting) -> Callable[[Any], Any]:
    flag, default = setting.flag, setting.default
    if setting.kind is bool:
        both = f"{flag}/--no-{flag.removeprefix('--')}" if default else flag
        return click.option(both, setting.name, is_flag=True, default=default, show_default=default, help=setting.help)
    metavar = setting.metavar
    if setting.choices:
        metavar = f"[{'|'.join([*setting.words, *setting.choices])}]"
    elif setting.words:
        metavar = "|".join([*setting.words, "N" if setting.kind is int else "X"])
    return click.option(
        flag,
        setting.name,
        type=_Value(setting),
        multiple=setting.many,
        callback=_split_commas if setting.commas else None,
        default=next((word for word, value in setting.words.items() if value == default), default),
        show_default=default != (),
        metavar=metavar,
        help=setting.help,
    )


def _split_commas(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part.strip() for each in value for part in each.split(",") if part.strip())


class Grouped(click.Command):
    """A command with many options: --help shows the first group of them, --help-all every group.

    groups: flags by the group's name; every option but those of the help is in one.
    """

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups = groups
        self.params.append(
            click.Option(
                ["--help-all"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=self._show_all,
                help="Show all options and exit.",
            )
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        by_flag = {flag: each for each in self.get_params(ctx) for flag in each.opts}
        (first, basic), *others = self.groups.items()
        shown = self.groups if ctx.meta.get(__name__) else {first: basic}
        for name, flags in {**shown, "Help": ("--help-all", "--help")}.items():
            with formatter.section(name):
                formatter.write_dl([record for flag in flags if (record := by_flag[flag].get_help_record(ctx))])
        if shown is not self.groups:
            count = sum(len(flags) for _, flags in others)
            names = ", ".join(name.lower() for name, _ in others)
            formatter.write_paragraph()
            formatter.write_text(f"{count} more options ({names}): {ctx.command_path} --help-all")

    @staticmethod
    def _show_all(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            ctx.meta[__name__] = True
            click.echo(ctx.get_help())
            ctx.exit()


recipe = options(
    click.option(
        "--recipe",
        type=click.Path(path_type=Path, dir_okay=False),
        help="TOML file with settings, for one skill or several; flags override it.",
    ),
    click.option(
        "--data",
        multiple=True,
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Where to look for the files of --recipe, besides the working directory. Repeatable.",
    ),
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


def shared(*names: str) -> Callable[[Any], Any]:
    """Options that a command shares with `unskill export`."""
    return options_of(ExportSettings, names)
