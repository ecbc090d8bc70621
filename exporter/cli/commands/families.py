"""The command `unskill families`. It never imports torch."""

from __future__ import annotations

import click

from exporter.cli.options import as_json
from exporter.cli.output import echo_json


@click.command("families", short_help="The model families that can be exported.")
@as_json
def families_command(as_json: bool) -> None:
    """List the model families that can be exported, by model_type of config.json: what an MLP of each computes, since
    which release of transformers a checkpoint of it loads, which methods work on it, and whether mlx_lm takes the
    checkpoint too.

    \b
    unskill families
    """
    from exporter.models.families import FAMILIES, MLX_FAMILIES

    if as_json:
        listed = [
            {
                "family": name,
                "computes": family.form.computes,
                "transformers": family.since,
                "methods": list(family.form.methods),
                "mlx_lm": name in MLX_FAMILIES,
            }
            for name, family in FAMILIES.items()
        ]
        echo_json({"families": listed})
        return
    from exporter.cli.tables.console import console, titled

    table = titled("Supported families", ("family", "its MLP computes", "transformers from", "methods", "mlx_lm"))
    for name, family in FAMILIES.items():
        mlx = "yes" if name in MLX_FAMILIES else "no"
        table.add_row(name, family.form.computes, family.since, ", ".join(family.form.methods), mlx)
    console(120).print(table)
