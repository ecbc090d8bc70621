"""Flags that no skill's method or region uses are refused by name; the same settings in a recipe are not."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from exporter.cli.main import main
from exporter.common.errors import BadInput
from exporter.recipes.declared import declared
from exporter.recipes.settings import METHODS, ExportSettings, SkillSettings
from exporter.recipes.used import USERS, check_used

FLAGS = declared(SkillSettings) | declared(ExportSettings)
LIMITED = {name: each for name, each in FLAGS.items() if each.used_by}
# Of every flag that not all methods use, the methods that do, written out beside the declarations.
BLOCK, CHANGE, ADJUST = {"ksd", "na+ksd"}, {"na", "na+ksd", "sp"}, {"na", "na+ksd"}
USED_WITH = {
    **dict.fromkeys(("layer", "alpha", "region", "target_block_rate", "max_false_block", "max_near_miss"), BLOCK),
    "max_after_refusal": BLOCK,
    **dict.fromkeys(("refusal", "prompt_template", "formats", "system_prompts", "template_args", "effort"), BLOCK),
    **dict.fromkeys(("beta", "score", "max_retain_loss", "statistics"), CHANGE),
    **dict.fromkeys(("draws", "compat"), ADJUST),
}


def settings(*skills: dict[str, Any]) -> ExportSettings:
    made = (
        SkillSettings(**{"forget": ("f",), "retain": ("r",), "name": str(number), **each})
        for number, each in enumerate(skills)
    )
    return ExportSettings("m", Path("o"), tuple(made))


def test_every_user_is_a_property() -> None:
    assert {each.used_by for each in LIMITED.values()} == USERS.keys()
    assert all(hasattr(SkillSettings, name) for name in USERS)
    assert LIMITED.keys() == USED_WITH.keys()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", sorted(FLAGS.keys() - {"model", "out", "skills", "name"}))
def test_a_flag_beside_a_method(name: str, method: str) -> None:
    asked = settings({"method": method, "packaged": ("maths",)})
    if method in USED_WITH.get(name, METHODS):
        check_used(asked, [name])
        return
    with pytest.raises(BadInput) as error:
        check_used(asked, ["forget", name])
    assert str(error.value).startswith(f"{FLAGS[name].flag}: ") and f"method {method}" in str(error.value)


@pytest.mark.parametrize(
    ("skill", "uses"),
    [
        ({}, True),
        ({"region": "hypercube", "packaged": ("maths",)}, False),
        ({"region": "discriminant", "packaged": ("maths",)}, True),
        ({"packaged": ("maths",)}, True),
    ],
)
def test_a_flag_beside_a_region(skill: dict[str, Any], uses: bool) -> None:
    if uses:
        return check_used(settings(skill), ["max_near_miss"])
    region = skill.get("region", "discriminant")
    with pytest.raises(BadInput, match=f"^--max-near-miss: .*method ksd, region {region}$"):
        check_used(settings(skill), ["max_near_miss"])


def test_one_skill_that_uses_it_is_enough() -> None:
    both = settings({"method": "ksd"}, {"method": "sp"})
    check_used(both, ["beta", "alpha"])
    with pytest.raises(BadInput, match=r"^--draws: .* method ksd, region discriminant and method sp$"):
        check_used(both, ["draws"])


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("--beta", "1"), "--beta"),
        (("--beta", "auto"), "--beta"),  # also where it asks for nothing but the default
        (("--score", "attribution"), "--score"),
        (("--max-retain-loss", "0.01"), "--max-retain-loss"),
        (("--draws", "sampled"), "--draws"),
        (("--method", "na", "--layer", "3"), "--layer"),
        (("--method", "sp", "--refusal", "No, not that"), "--refusal"),
        (("--method", "na", "--system-prompt", "Be brief."), "--system-prompt"),
        (("--method", "sp", "--formats", "plain"), "--formats"),
        (("--region", "hypercube", "--max-near-miss", "0.1"), "--max-near-miss"),
    ],
)
def test_on_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], flag: str
) -> None:
    """Before any file is looked for."""
    command = ["export", "no-model", "no-out", "--forget", "no.jsonl", "--retain", "no.jsonl", *arguments]
    monkeypatch.setattr(sys, "argv", ["unskill", *command])
    with pytest.raises(SystemExit) as stopped:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith(f"unskill: error: {flag}: ")
    assert f"method {dict(pairwise(arguments)).get('--method', 'ksd')}" in line


def test_a_recipe_may_hold_them_and_a_flag_beside_it_may_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'forget = "no.jsonl"\nretain = "no.jsonl"\nbeta = 2.0\nscore = "attribution"\ndraws = "expected"\n'
    )
    for more, said in ((), "no.jsonl"), (("--alpha", "3"), "no.jsonl"), (("--beta", "2"), "--beta: "):
        monkeypatch.setattr(sys, "argv", ["unskill", "export", "m", "o", "--recipe", str(recipe), *more])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2 and said in capsys.readouterr().err
