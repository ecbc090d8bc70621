"""The code of a checkpoint, for transformers and for MLX: the runtime, then short subclasses of the family's own."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Sequence
from datetime import date
from importlib import resources
from typing import Any

import jinja2

from exporter.common.version import __version__
from exporter.models.families import MIXTURE, MLX_FAMILIES, Family

# Parts of the runtime in the order in which they need one another.
RUNTIME = ("buffers", "neuron_adjust", "key_space", "loading", "mlps", "runtime")
MLX_RUNTIME = ("mlx_runtime",)
THIRD_PARTY = ("mlx", "numpy", "torch", "transformers")


def module_name(family: Family) -> str:
    return f"modeling_unskill_{family.model_type}"


def mlx_name(model_type: str) -> str:
    """File name of the MLX code for a family of MLX_FAMILIES."""
    return f"mlx_unskill_{model_type}.py"


def class_names(family: Family) -> dict[str, str]:
    """Names of the checkpoint's classes, from those of the live objects."""
    return {
        "config": f"Unskill{family.config.__name__}",
        "model": f"Unskill{family.model.__name__}",
        "causal_lm": f"Unskill{family.causal_lm.__name__}",
    }


def runtime_source(parts: Sequence[str]) -> str:
    """A runtime in one piece: imports, then one part after another, their docstrings as comments."""
    imports: dict[str, None] = {}
    bodies = []
    for name in parts:
        text = resources.files("custom_modeling").joinpath(f"{name}.py").read_text(encoding="utf-8")
        tree = ast.parse(text)
        heads = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        imports.update({line: None for line in map(ast.unparse, heads) if not line.startswith("from custom_modeling")})
        body = "".join(text.splitlines(keepends=True)[heads[-1].end_lineno :]).strip()
        bodies.append(
            textwrap.indent(ast.get_docstring(tree) or "", "# ", lambda line: True).replace("# \n", "#\n")
            + "\n\n"
            + body
        )
    order = sorted(imports, key=lambda line: (line.split()[1].split(".")[0] in THIRD_PARTY, line))
    return "\n".join(order) + "\n\n\n" + "\n\n\n".join(bodies)


def render_modeling(family: Family, year: int | None = None) -> str:
    """Source text of `modeling_unskill_<base>.py`. year: of its copyright line, by default this one."""
    modeling = {family.causal_lm.__name__, family.model.__name__, *(mlp.__name__ for mlp in family.mlps)}
    return _render(
        "modeling.py.jinja",
        RUNTIME,
        year,
        family=family.model_type,
        minimum_transformers=family.minimum_transformers,
        imports=[
            (family.config.__module__, [family.config.__name__]),
            (family.causal_lm.__module__, sorted(modeling)),
        ],
        model_type=family.model_type,
        config=family.config.__name__,
        mlps=[mlp.__name__ for mlp in family.mlps],
        form=family.form,
        converts=family.form is MIXTURE,
        model=family.model.__name__,
        causal_lm=family.causal_lm.__name__,
    )


def render_mlx(model_type: str, year: int | None = None) -> str:
    """Source text of `mlx_name` for a family of MLX_FAMILIES. year: of its copyright line, by default this one."""
    return _render("mlx.py.jinja", MLX_RUNTIME, year, family=model_type, module=MLX_FAMILIES[model_type])


def _render(template: str, parts: Sequence[str], year: int | None, **values: Any) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    text = resources.files("custom_modeling").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(text).render(
        year=year or date.today().year, unskill_version=__version__, runtime=runtime_source(parts), **values
    )
