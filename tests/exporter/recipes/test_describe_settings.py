"""Settings of a skill from a description: its name, what belongs together, and a recipe's against flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporter.common.errors import BadInput
from exporter.recipes.recipe import merged_settings
from exporter.recipes.settings import NAME_LENGTH, ExportSettings, SkillSettings, name_of
from exporter.recipes.used import check_used


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("arithmetic word problems", "arithmetic word problems"),
        (
            "Everything about cooking: recipes, menus, wine, and shopping for it.",
            "Everything about cooking: recipes",
        ),
        ("  two\nlines\tof \x1b text ", "two lines of text"),
        ("Sums.", "Sums"),
        ("...", "..."),
        ("x" * 100, "x" * NAME_LENGTH),
        ("Übersetzungen ins Dänische", "Übersetzungen ins Dänische"),
    ],
)
def test_names(description: str, name: str) -> None:
    assert name_of(description) == name and len(name) <= NAME_LENGTH and name.isprintable()
    assert SkillSettings(describe=description).name == name
    assert SkillSettings(describe=description, name="mine").name == "mine"


def test_it_stands_beside_other_prompts() -> None:
    skill = SkillSettings(describe="sums")
    assert skill.discriminates and skill.to_write
    assert SkillSettings(("f.txt",), packaged=("maths",), describe="sums").name == "sums"
    assert not SkillSettings(describe="sums", read_prompts="kept.jsonl").to_write
    check_used(ExportSettings("m", Path("o"), (skill,)), ["max_near_miss", "generator", "describe"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"describe": " "}, "--describe: the text is empty"),
        ({"describe": "sums", "but_not": ""}, "--not: the text is empty"),
        ({"forget": ("f",), "but_not": "dates"}, "--not: belongs to --describe TEXT, which is missing"),
        ({"forget": ("f",), "save_prompts": Path("a.jsonl")}, "--save-prompts: belongs to --describe"),
        ({"forget": ("f",), "read_prompts": "a.jsonl"}, "--read-prompts: belongs to --describe"),
        ({"describe": "sums", "save_prompts": Path("a.txt")}, "--save-prompts: a.txt must end with .jsonl"),
        (
            {"describe": "sums", "save_prompts": Path("a.jsonl"), "read_prompts": "b.jsonl"},
            "--save-prompts: with --read-prompts none are written",
        ),
        ({}, "--forget or --skill: .* --describe"),
    ],
)
def test_what_does_not_fit(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=f"^{said}"):
        SkillSettings(**given)


def test_a_generator_without_a_description() -> None:
    with pytest.raises(BadInput, match=r"^--generator: writes prompts for --describe TEXT, which no skill has"):
        ExportSettings("m", Path("o"), (SkillSettings(("f",)),), generator="larger")


def test_another_description_is_written_for_anew() -> None:
    recipe = {"model": "m", "out": Path("o"), "skill": [{"describe": "sums", "read_prompts": "kept.jsonl"}]}
    assert merged_settings(recipe, {}).skills[0].read_prompts == "kept.jsonl"
    (skill,) = merged_settings(recipe, {"describe": "dates"}).skills
    assert skill.describe == "dates" and skill.to_write
    (skill,) = merged_settings(recipe, {"describe": "dates", "read_prompts": "other.jsonl"}).skills
    assert skill.read_prompts == "other.jsonl"


@pytest.mark.parametrize("flag", ["describe", "but_not", "save_prompts", "read_prompts"])
def test_a_flag_with_a_recipe_of_two_skills(flag: str) -> None:
    recipe = {"model": "m", "out": Path("o"), "skill": [{"name": name, "describe": name} for name in ("one", "two")]}
    with pytest.raises(BadInput, match="the recipe has 2 skills"):
        merged_settings(recipe, {flag: "text"})
