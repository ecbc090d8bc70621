"""Settings that are declared once, as fields of a dataclass: their checks, what recipes give, and what --help says.

Cross-field rules stay in `__post_init__` of the dataclass. Nothing heavy is imported, as --help reads this too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from operator import ge, gt, le, lt
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from exporter.common.errors import BadInput

_KINDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}


@dataclass(frozen=True)
class Setting:
    """One setting, of a field's name, type and default, and what `setting` adds to them."""

    name: str
    kind: type  # of the value; of each where there are many
    many: bool
    optional: bool
    default: Any
    flag: str  # as errors name it
    help: str | None = None
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    words: Mapping[str, Any] = field(default_factory=dict)
    above: float | None = None
    minimum: float | None = None
    below: float | None = None
    maximum: float | None = None
    commas: bool = False
    in_recipe: bool = True

    @property
    def wanted(self) -> str:
        """What a value has to be, for error lines."""
        kind = "text or a list of texts" if self.many else _KINDS[self.kind]
        return self.within if self.choices else ", ".join(filter(None, (kind, self.within)))

    @property
    def within(self) -> str:
        """The choices or bounds, and the words that stand for a value; "" where there are none."""
        if self.choices:
            return f"one of {', '.join([*self.words, *self.choices])}"
        bounds = " and ".join(text.format(bound) for text, _, bound in self._bounds())
        return ", ".join([bounds] * bool(bounds) + [f'or "{word}"' for word in self.words])

    def check(self, value: Any) -> None:
        """Raises BadInput for a value of the right type that is no choice or out of bounds."""
        if value is None or value in self.words.values():
            return
        if self.kind in (int, float):
            fits = math.isfinite(value) and all(holds(value, bound) for _, holds, bound in self._bounds())
        else:
            fits = not self.choices or value in self.choices
        if not fits:
            raise BadInput(f"{self.flag}: {value!r} is not {self.within or 'finite'}")

    def from_text(self, text: str) -> Any:
        """The value, or one of many, that a command line gives. Raises ValueError for another type's."""
        return self.words[text] if text in self.words else self.kind(text)

    def from_toml(self, value: Any) -> Any:
        """The value that a recipe gives, "auto" where there may be none. Raises ValueError for another type's."""
        if isinstance(value, str) and value in self.words:
            return self.words[value]
        if value == "auto" and self.optional:
            return None
        if self.many:
            return tuple(map(self._one, value if isinstance(value, list) else [value]))
        return self._one(value)

    def _bounds(self) -> list[tuple[str, Callable[[Any, Any], bool], float]]:
        found = (
            ("above {}", gt, self.above),
            ("{} or more", ge, self.minimum),
            ("below {}", lt, self.below),
            ("at most {}", le, self.maximum),
        )
        return [(text, holds, bound) for text, holds, bound in found if bound is not None]

    def _one(self, value: Any) -> Any:
        taken: Any = {float: (int, float), Path: str}.get(self.kind, self.kind)
        if not isinstance(value, taken) or isinstance(value, bool) != (self.kind is bool):
            raise ValueError
        return self.kind(value)


def setting(default: Any = MISSING, **about: Any) -> Any:
    """A field of a dataclass with what its type does not say, see `Setting`.

    `help` makes it an option of the command line, its flag is the name unless `flag` says another; `choices`, or
    `above`, `minimum`, `below` and `maximum` bound it; `words` stand for values, as "auto" for None; `commas`: many
    may be given at once; `in_recipe` False keeps it out of recipes.
    """
    return field(default=default, metadata=about)


@cache
def declared(cls: type) -> dict[str, Setting]:
    """The settings of a dataclass by their names."""
    types, found = get_type_hints(cls), {}
    for each in fields(cls):
        kinds = get_args(types[each.name]) or (types[each.name],)
        about = {"flag": f"--{each.name.replace('_', '-')}", "default": each.default, **each.metadata}
        many, optional = get_origin(types[each.name]) is tuple, type(None) in kinds
        found[each.name] = Setting(each.name, kinds[0], many, optional, **about)
    return found


def check(settings: Any) -> None:
    """Raises BadInput for a value that is no choice or out of its bounds."""
    for name, each in declared(settings.__class__).items():
        if not each.many:
            each.check(getattr(settings, name))
