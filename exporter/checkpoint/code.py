"""The modeling file of a checkpoint: the runtime pasted in, then short subclasses of the family's own classes."""

from __future__ import annotations

import ast
import textwrap
from datetime import date
from importlib import resources

import jinja2

from exporter.common.version import __version__
from exporter.models.families import Family

# Parts of the runtime in the order in which they need one another.
RUNTIME = ("buffers", "neuron_adjust", "key_space", "loading", "runtime")


def module_name(family: Family) -> str:
    return f"modeling_unskill_{family.model_type}"


def class_names(family: Family) -> dict[str, str]:
    """Names of the checkpoint's classes, from those of the live objects."""
    return {
        "config": f"Unskill{family.config.__name__}",
        "model": f"Unskill{family.model.__name__}",
        "causal_lm": f"Unskill{family.causal_lm.__name__}",
    }


def runtime_source() -> str:
    """The runtime in one piece: imports, then one part after another, their docstrings as comments."""
    imports: dict[str, None] = {}
    bodies = []
    for name in RUNTIME:
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
    order = sorted(imports, key=lambda line: (line.split()[1].split(".")[0] in ("torch", "transformers"), line))
    return "\n".join(order) + "\n\n\n" + "\n\n\n".join(bodies)


def render_modeling(family: Family, year: int | None = None) -> str:
    """Source text of `modeling_unskill_<base>.py`. year: of its copyright line, by default this one."""
    files = resources.files("custom_modeling")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    modeling = {family.causal_lm.__name__, family.model.__name__, family.mlp.__name__}
    template = environment.from_string(files.joinpath("modeling.py.jinja").read_text(encoding="utf-8"))
    return template.render(
        year=year or date.today().year,
        unskill_version=__version__,
        family=family.model_type,
        runtime=runtime_source(),
        minimum_transformers=family.minimum_transformers,
        imports=[
            (family.config.__module__, [family.config.__name__]),
            (family.causal_lm.__module__, sorted(modeling)),
        ],
        model_type=family.model_type,
        config=family.config.__name__,
        mlp=family.mlp.__name__,
        model=family.model.__name__,
        causal_lm=family.causal_lm.__name__,
    )
