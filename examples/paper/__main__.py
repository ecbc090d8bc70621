"""Run one experiment.

python -m examples.paper examples/paper/recipes/clustering.toml --data DIR
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from examples.paper.experiment import read_experiment
from exporter.common.errors import BadInput, UnskillError


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), default=Path(), help="Folder in which the sources lie.")
@click.option("--model", help="Folder or Hub id, instead of the recipe's.")
@click.option("--seed", type=int, help="Instead of the recipe's.")
@click.option("--device", help="Instead of the recipe's.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results; default build/paper/RECIPE.")
def main(recipe: Path, data: Path, out: Path | None, **given: str | int | None) -> None:
    """Run the experiment of RECIPE and write results.json, tables.md and figures to --out.

    What is there of an earlier run is replaced.
    """
    out = out or Path("build/paper") / recipe.stem
    run, settings = read_experiment(recipe, data.resolve(), out, {k: v for k, v in given.items() if v is not None})
    results = run(settings)
    results.write(out)
    results.show(Console(width=None if sys.stdout.isatty() else 160))
    click.echo(f"\nWrote {out}")


def entry(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 1 failed while running, 2 wrong usage or bad input; errors are one line."""
    try:
        main(arguments, standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        return BadInput.exit_code
    except UnskillError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(entry())
