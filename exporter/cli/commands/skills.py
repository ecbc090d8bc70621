"""The command `unskill skills`. It never imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from exporter.cli.options import as_json
from exporter.cli.output import echo_json

if TYPE_CHECKING:
    from exporter.prompts.packaged_skills import PackagedSkill


@click.command("skills", short_help="The packaged skills, for export --skill.")
@click.argument("name", required=False)
@as_json
def skills_command(name: str | None, as_json: bool) -> None:
    """List the skills that come with unskill, which unskill export --skill NAME makes a model forget; with NAME, say
    what belongs to that skill and what does not.

    \b
    unskill skills
    unskill skills maths
    """
    from exporter.prompts.packaged_skills import languages, packaged_skill, packaged_skills

    if name is not None:
        found = packaged_skill(name)
        if as_json:
            echo_json(page(found))
        else:
            click.echo("\n".join(lines(found)))
        return
    listed = [counts(packaged_skill(each)) for each in (*packaged_skills(), *languages())]
    if as_json:
        echo_json({"skills": listed})
        return
    from exporter.cli.tables.console import console, titled

    table = titled("Packaged skills", ("name", "title", "languages"), ("prompts", "near misses", "forms"))
    for each in listed:
        numbers = (each["forget"], each["near_misses"], len(each["forms"]))
        table.add_row(each["name"], each["title"], " ".join(each["languages"]), *map(str, numbers))
    console(100).print(table)


def counts(skill: PackagedSkill) -> dict[str, Any]:
    """What the list says of a skill."""
    return {
        "name": skill.name,
        "title": skill.title,
        "forget": len(skill.forget),
        "near_misses": len(skill.near_misses),
        "forms": sorted({prompt.form for prompt in skill.forget if prompt.form}),
        "languages": sorted({prompt.language for prompt in skill.forget if prompt.language}),
    }


def page(skill: PackagedSkill) -> dict[str, Any]:
    """All that there is of a skill but its prompts."""
    return counts(skill) | {
        "description": skill.description,
        "belongs": skill.belongs,
        "not_belonging": skill.not_belonging,
        "everyday_kinds": skill.everyday_kinds,
        "everyday_prompts": skill.everyday_prompts,
        "shared": skill.shared,
        "shared_rows": skill.shared_rows,
    }


def lines(skill: PackagedSkill) -> list[str]:
    """The page of a skill as text."""
    shared = [f"{other}: {text}" for other, text in skill.shared.items()]
    found = [f"{skill.name}: {skill.title}", "", skill.description]
    for heading, items in (
        ("Belongs to it", skill.belongs),
        ("Does not", skill.not_belonging),
        ("Prompts of another packaged skill that belong to it too", shared),
    ):
        found += ["", f"{heading}:", *(f"- {item}" for item in items)]
    return found
