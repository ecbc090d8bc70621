"""Settings that are declared once: bounds, choices and words are the same in code, recipes and on the command line."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from exporter.cli.main import cli
from exporter.cli.options import options_of
from exporter.common.errors import BadInput
from exporter.recipes.declared import declared
from exporter.recipes.recipe import COMMON_KEYS, SKILL_KEYS, merged_settings, read_recipe
from exporter.recipes.settings import ExportSettings, SkillSettings

GIVEN = {"model": "m", "out": "o", "forget": ("a.txt",)}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("alpha", 0.0, '--alpha: 0.0 is not above 0, or "auto"'),
        ("alpha", float("inf"), "--alpha: inf is not above 0"),
        ("target_block_rate", 1.0, "--target-block-rate: 1.0 is not above 0 and below 1"),
        ("max_false_block", 1.5, "--max-false-block: 1.5 is not 0 or more and at most 1"),
        ("beta", 100.5, '--beta: 100.5 is not above 0 and at most 100, or "auto"'),
        ("layer", -1, '--layer: -1 is not 0 or more, or "auto", or "last"'),
        ("max_retain_loss", float("nan"), "--max-retain-loss: nan is not above 0"),
        ("score", "loud", "--score: 'loud' is not one of auto, attribution"),
        ("formats", "both", "--formats: 'both' is not one of mixed, plain"),
        ("seed", 2**63, "--seed: 9223372036854775808 is not 0 or more"),
        ("threads", 0, "--threads: 0 is not 1 or more"),
    ],
)
def test_out_of_bounds(name: str, value: Any, expected: str) -> None:
    with pytest.raises(BadInput) as error:
        merged_settings({}, {**GIVEN, name: value})
    assert expected in str(error.value)


@pytest.mark.parametrize(("name", "value"), [("beta", 100), ("max_false_block", 0), ("max_false_block", 1)])
def test_ends_that_are_within(name: str, value: Any) -> None:
    assert getattr(merged_settings({}, {**GIVEN, name: value}).skills[0], name) == value


@pytest.mark.parametrize("name", sorted({**SKILL_KEYS, **COMMON_KEYS}.keys() - {"name", "model", "out"}))
def test_a_flag_and_a_key_give_the_same_value(name: str, tmp_path: Any) -> None:
    """Each by a text of its own: what the command line makes of it is what a recipe's value becomes."""
    setting = {**SKILL_KEYS, **COMMON_KEYS}[name]
    cls = SkillSettings if name in SKILL_KEYS else ExportSettings
    values = {bool: "true", int: "3", float: "0.5", str: '"text"'}
    written = f'"{setting.choices[-1]}"' if setting.choices else values.get(setting.kind, '"path"')
    (tmp_path / "recipe.toml").write_text(f"{name} = {written}\n")
    (key,) = read_recipe(tmp_path / "recipe.toml").values()

    found: dict[str, Any] = {}
    command = click.command(options_of(cls, (name,))(lambda **flags: found.update(flags)))
    done = CliRunner().invoke(command, [setting.flag, *([] if setting.kind is bool else [written.strip('"')])])
    assert done.exit_code == 0, done.output
    assert found == {name: key} and type(found[name]) is type(key)


def test_words(tmp_path: Any) -> None:
    (tmp_path / "recipe.toml").write_text('layer = "last"\nalpha = "auto"\nthreads = "auto"\nscore = "auto"\n')
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert recipe == {"layer": "last", "alpha": None, "threads": None, "score": None}


@pytest.mark.parametrize("name", ["compat", "revision"])
def test_auto_is_none_in_recipes_of_old(name: str, tmp_path: Any) -> None:
    (tmp_path / "recipe.toml").write_text(f'{name} = "auto"\n')
    assert read_recipe(tmp_path / "recipe.toml") == {name: None}


def test_every_setting_of_an_export_is_an_option_with_its_default() -> None:
    options = {each.name: each for each in cli.commands["export"].params if isinstance(each, click.Option)}
    for setting in [*declared(SkillSettings).values(), *declared(ExportSettings).values()]:
        if setting.name in ("name", "model", "out", "skills"):
            continue
        context = click.Context(cli.commands["export"])
        option = options[setting.name]
        assert option.type_cast_value(context, option.get_default(context)) == setting.default, setting.name
        assert option.help
