"""Flags beside a method or region that does not use them: what they ask for would silently not be done.

A recipe may hold them: an export records all its settings, and one recipe may be run by several methods.
"""

from __future__ import annotations

from collections.abc import Iterable

from exporter.common.errors import BadInput
from exporter.recipes.declared import declared
from exporter.recipes.settings import DISCRIMINANT, HYPERCUBE, ExportSettings, SkillSettings

USERS = {
    "blocks": "methods ksd and na+ksd",
    "adjusts": "methods na and na+ksd",
    "changes_neurons": "methods na, na+ksd and sp",
    "discriminates": "region discriminant",
}
"""Who uses a setting, by its `used_by`."""


def check_used(settings: ExportSettings, given: Iterable[str]) -> None:
    """Raises BadInput where no skill's method or region uses one of the flags `given` on the command line, by name."""
    known = declared(ExportSettings) | declared(SkillSettings)
    for name in given:
        setting = known[name]
        if setting.used_by and not any(getattr(skill, setting.used_by) for skill in settings.skills):
            others = " and ".join(dict.fromkeys(map(_described, settings.skills)))
            raise BadInput(f"{setting.flag}: is for {USERS[setting.used_by]}; leave it out with {others}")


def _described(skill: SkillSettings) -> str:
    """Its method and, where it refuses, its region."""
    region = DISCRIMINANT if skill.discriminates else HYPERCUBE
    return f"method {skill.method}" + (f", region {region}" if skill.blocks else "")
