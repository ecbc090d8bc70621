"""unskill: write a checkpoint of a causal language model that refuses a skill (arXiv:2503.21730).

The functions and classes here are those of `exporter.pipeline.python`, imported when they are first asked for.

>>> import exporter as unskill
>>> result = unskill.export(model, out, skills=["maths"])  # doctest: +SKIP
>>> print(result.verdict)  # doctest: +SKIP
"""

from typing import TYPE_CHECKING

from exporter.common.errors import BadInput, Rejected, RunFailed, UnskillError
from exporter.common.version import __version__

if TYPE_CHECKING:
    from exporter.pipeline.python import Checkpoint, Result, evaluate, export, load, verify
    from exporter.prompts.sources import Source

__all__ = [
    "BadInput",
    "Checkpoint",
    "Rejected",
    "Result",
    "RunFailed",
    "Source",
    "UnskillError",
    "__version__",
    "evaluate",
    "export",
    "load",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from exporter.pipeline import python

    return getattr(python, name)


def __dir__() -> list[str]:
    return __all__
