"""Settings declared once, as fields of a dataclass: their checks, their values in recipes and their options.

Rules across fields belong in the dataclass's `__post_init__`. Nothing heavy is imported, because --help loads this.
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
    """A setting: name, type and default of a field, and what `setting` adds to them."""

    name: str
    kind: type  # of the value, or of each of many
    many: bool
    optional: bool
    default: Any
    flag: str  # its name in errors
    help: str | None = None
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    words: Mapping[str, Any] = field(default_factory=dict)
    above: float | None = None
    minimum: float | None = None
    below: float | None = None
    maximum: float | None = None
    commas: bool = False
    used_by: str = ""
    in_recipe: bool = True

    @property
    def wanted(self) -> str:
        """What a value must be, for errors."""
        kind = "text or a list of texts" if self.many else _KINDS[self.kind]
        return self.within if self.choices else ", ".join(filter(None, (kind, self.within)))

    @property
    def within(self) -> str:
        """The choices or bounds, and words that stand for a value; "" without any."""
        if self.choices:
            return f"one of {', '.join([*self.words, *self.choices])}"
        bounds = " and ".join(text.format(bound) for text, _, bound in self._bounds())
        return ", ".join([bounds] * bool(bounds) + [f'or "{word}"' for word in self.words])

    def check(self, value: Any) -> None:
        """Raises BadInput for a value of the right type that is not among the choices or out of bounds."""
        if value is None or value in self.words.values():
            return
        if self.kind in (int, float):
            fits = math.isfinite(value) and all(holds(value, bound) for _, holds, bound in self._bounds())
        else:
            fits = not self.choices or value in self.choices
        if not fits:
            raise BadInput(f"{self.flag}: {value!r} is not {self.within or 'finite'}")

    def from_text(self, text: str) -> Any:
        """The value, or one of many, from the command line. Raises ValueError for another type."""
        return self.words[text] if text in self.words else self.kind(text)

    def from_toml(self, value: Any) -> Any:
        """The value from a recipe; "auto" is None if that is allowed. Raises ValueError for another type."""
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

    `help` makes it a command-line option, called like the field unless there is a `flag`; `choices`, or `above`,
    `minimum`, `below` and `maximum` limit it; `words` stand for values, as "auto" for None; `commas` separate several
    values; `used_by` names the property of a skill's settings that holds where the setting is used, if not for every
    skill; `in_recipe` False keeps it out of recipes.
    """
    return field(default=default, metadata=about)


@cache
def declared(cls: type) -> dict[str, Setting]:
    """The settings of a dataclass by name."""
    types, found = get_type_hints(cls), {}
    for each in fields(cls):
        kinds = get_args(types[each.name]) or (types[each.name],)
        about = {"flag": f"--{each.name.replace('_', '-')}", "default": each.default, **each.metadata}
        many, optional = get_origin(types[each.name]) is tuple, type(None) in kinds
        found[each.name] = Setting(each.name, kinds[0], many, optional, **about)
    return found


def check(settings: Any) -> None:
    """Raises BadInput for a value that is not among its choices or out of bounds."""
    for name, each in declared(settings.__class__).items():
        if not each.many:
            each.check(getattr(settings, name))
