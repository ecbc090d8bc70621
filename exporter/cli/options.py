"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from exporter.recipes.settings import DTYPES


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


def options(*chosen: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in their order in --help."""

    def decorate(function: Any) -> Any:
        for option in reversed(chosen):
            function = option(function)
        return function

    return decorate


AUTO_FLOAT, AUTO_COUNT = NumberOr(float, {"auto": None}), NumberOr(int, {"auto": None})
LAYER = NumberOr(int, {"auto": None, "last": "last"})

sources = options(
    click.option("--forget", multiple=True, metavar="SOURCE", help="Example prompts of the skill. Repeatable."),
    click.option("--retain", multiple=True, metavar="SOURCE", help="Prompts that must still be answered. Repeatable."),
    click.option(
        "--recipe",
        type=click.Path(path_type=Path, dir_okay=False),
        help="TOML file that says the same, for one skill or several; flags win.",
    ),
    click.option(
        "--data",
        multiple=True,
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Where the files that --recipe names are looked for, besides the working directory. Repeatable.",
    ),
    click.option("--revision", metavar="COMMIT", help="Branch, tag or commit of a MODEL of the Hub."),
    click.option(
        "--everyday/--no-everyday",
        default=True,
        show_default=True,
        help="Use the packaged everyday prompts on the retain side.",
    ),
    click.option(
        "--everyday-without",
        multiple=True,
        metavar="KIND[,KIND]",
        callback=split_commas,
        help="Kinds of everyday prompts that belong to the skill.",
    ),
)
prompt_template = click.option(
    "--prompt-template",
    default="auto",
    show_default=True,
    metavar="auto|chat|TEXT",
    help="How prompts are formatted; {prompt} in TEXT is replaced.",
)
recorded_template = click.option(
    "--prompt-template",
    metavar="auto|chat|TEXT",
    help="How prompts are formatted; {prompt} in TEXT is replaced. Default: as the export's were.",
)
machine = options(
    click.option("--seed", type=int, default=0, show_default=True),
    click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="Of the model."),
    click.option("--device", default="cpu", show_default=True),
    click.option("--batch-size", type=AUTO_COUNT, default="auto", show_default=True),
)
running = options(
    click.option("--skip-long", is_flag=True, help="Leave out prompts longer than the model's context."),
    machine,
    click.option(
        "--threads",
        type=AUTO_COUNT,
        default="auto",
        show_default=True,
        help="Of the CPU. Last bits of sums depend on it, so a checkpoint's recipe has the number.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace OUT, in one step, once the new one is whole."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
    click.option("--quiet", is_flag=True, help="No progress bars and remarks."),
)
