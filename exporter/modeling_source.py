"""The modeling file of a checkpoint: the runtime pasted in, then short subclasses of the family's own classes."""

from __future__ import annotations

from datetime import date
from importlib import resources

import jinja2

from exporter import __version__
from exporter.families import Family


def module_name(family: Family) -> str:
    return f"modeling_unskill_{family.model_type}"


def class_names(family: Family) -> dict[str, str]:
    """Names of the checkpoint's classes, from those of the live objects."""
    return {
        "config": f"Unskill{family.config.__name__}",
        "model": f"Unskill{family.model.__name__}",
        "causal_lm": f"Unskill{family.causal_lm.__name__}",
    }


def render_modeling(family: Family) -> str:
    """Source text of `modeling_unskill_<base>.py`."""
    files = resources.files("custom_modeling")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    modeling = {family.causal_lm.__name__, family.model.__name__, family.mlp.__name__}
    template = environment.from_string(files.joinpath("modeling.py.jinja").read_text(encoding="utf-8"))
    return template.render(
        year=date.today().year,
        unskill_version=__version__,
        family=family.model_type,
        runtime=files.joinpath("runtime.py").read_text(encoding="utf-8").rstrip(),
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
