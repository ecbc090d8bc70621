"""Recipes: the same settings as flags would give, several skills, flags that win, and every mistake in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporter.common.errors import BadInput
from exporter.recipes.recipe import COMMON_KEYS, SKILL_KEYS, merged_settings, read_recipe
from exporter.recipes.settings import ExportSettings, SkillSettings

TWO = """
model = "some/model"
out = "out"
prompt_template = "Q: {prompt}\\nA:"
seed = 7
max_false_block = 0.02

[[skill]]
name = "maths"
forget = "maths.jsonl,column=question"
method = "na+ksd"
retain = ["code.jsonl", "facts.txt"]
beta = 1
layer = "last"
everyday_without = ["maths-knowledge"]

[[skill]]
name = "german"
forget = ["german.jsonl"]
alpha = "auto"
max_false_block = 0.03
"""


def settings(folder: Path, text: str, **flags: Any) -> ExportSettings:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return merged_settings(read_recipe(path), flags)


def test_several_skills(tmp_path: Path) -> None:
    found = settings(tmp_path, TWO)
    assert (found.model, found.out, found.seed) == ("some/model", Path("out"), 7)
    assert found.prompt_template == "Q: {prompt}\nA:"
    assert found.skills == (
        SkillSettings(
            ("maths.jsonl,column=question",),
            ("code.jsonl", "facts.txt"),
            name="maths",
            method="na+ksd",
            beta=1.0,
            layer="last",
            max_false_block=0.02,
            everyday_without=("maths-knowledge",),
        ),
        SkillSettings(("german.jsonl",), name="german", max_false_block=0.03),
    )


def test_flags_win(tmp_path: Path) -> None:
    found = settings(tmp_path, TWO, seed=8, out=Path("elsewhere"), max_false_block=0.5)
    assert (found.seed, found.out) == (8, Path("elsewhere"))
    assert [skill.max_false_block for skill in found.skills] == [0.5, 0.5]
    one = 'model = "m"\nout = "o"\nforget = "a.txt"\nretain = "b.txt"\nmethod = "na"'
    assert settings(tmp_path, one, forget=("c.txt",)).skills == (SkillSettings(("c.txt",), ("b.txt",), method="na"),)


def test_a_recipe_says_what_flags_say(tmp_path: Path) -> None:
    flags = {"model": "m", "out": Path("o"), "forget": ("a.txt",), "retain": ("b.txt",), "layer": 3, "alpha": 2.0}
    text = 'model = "m"\nout = "o"\nforget = ["a.txt"]\nretain = ["b.txt"]\nlayer = 3\nalpha = 2'
    assert settings(tmp_path, text) == merged_settings({}, flags)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model = ", "is not TOML"),
        ("colour = 1", "no key 'colour'"),
        ("[[skill]]\nname = 'a'\nseed = 1", "no key 'seed'"),
        ("seed = 'one'", "seed = 'one' is not a whole number"),
        ("seed = true", "seed = True is not a whole number"),
        ("beta = 'all'", "beta = 'all' is not a number"),
        ("layer = 'first'", "layer = 'first' is not a whole number"),
        ("everyday = 1", "everyday = 1 is not true or false"),
        ("forget = [1]", "forget = [1] is not text or a list of texts"),
        ("skill = 1", "[[skill]]"),
        ("overwrite = true", "no key 'overwrite'"),
        ("model = 'm'", "OUT"),
        ("out = 'm'", "MODEL"),
        ("model = 'm'\nout = 'o'", "--forget"),
        ("model = 'm'\nout = 'o'\n[[skill]]\nforget='a'\n[[skill]]\nforget='b'", "skill 1 has no name"),
        (
            "model = 'm'\nout = 'o'\n[[skill]]\nname='x'\nforget='a'\n[[skill]]\nname='x'\nforget='b'",
            "'x' is the name of two skills",
        ),
        (
            "model = 'm'\nout = 'o'\n[[skill]]\nname='x'\nforget='a'\nmethod='na'\n[[skill]]\nname='y'\nforget='b'",
            "--retain: method na needs retain texts to choose neurons by; name a source (skill x)",
        ),
    ],
)
def test_mistakes(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        settings(tmp_path, text)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_prompts_of_one_skill_for_a_recipe_of_two(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the recipe has 2 skills"):
        settings(tmp_path, TWO, forget=("a.txt",))


@pytest.mark.parametrize("text", ["packaged = 'maths'", "packaged = ['maths']", "[[skill]]\npackaged = ['maths']"])
def test_a_packaged_skill(text: str, tmp_path: Path) -> None:
    found = settings(tmp_path, text, model="m", out=Path("o"))
    assert found.skills == (SkillSettings(packaged=("maths",), name="maths"),)
    with pytest.raises(BadInput, match="--skill: the recipe has 2 skills"):
        settings(tmp_path, TWO, packaged=("maths",))


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_recipe(tmp_path / "absent.toml")


def test_the_example_has_every_key_with_its_default() -> None:
    path = Path(__file__).parents[3] / "examples" / "recipe.toml"
    text = path.read_text(encoding="utf-8")
    recipe = read_recipe(path)
    skills = {key for skill in recipe["skill"] for key in skill}
    without = ("compat", "revision", "statistics", "generator", "describe", "but_not", "save_prompts", "read_prompts")
    assert skills | recipe.keys() | set(without) == {*COMMON_KEYS, *SKILL_KEYS, "skill"}
    assert all(f"# {key} = " in text for key in without)
    plain = ExportSettings("", Path(), (SkillSettings(("a",)),))
    found = merged_settings(recipe, {})
    for key in COMMON_KEYS.keys() - {"model", "out"}:
        assert getattr(found, key) == getattr(plain, key), key
    for key in SKILL_KEYS.keys() - {"name", "method", "forget", "retain", "everyday_without"}:
        assert getattr(found.skills[0], key) == getattr(plain.skills[0], key), key


def test_the_example_of_three_skills() -> None:
    path = Path(__file__).parents[3] / "examples" / "three_skills.toml"
    found = merged_settings(read_recipe(path), {"model": "some/model", "out": Path("out")})
    assert [skill.name for skill in found.skills] == ["maths", "code", "german"]
    assert all(skill.method == "ksd" and skill.everyday_without for skill in found.skills)
    assert "{prompt}" in found.prompt_template
