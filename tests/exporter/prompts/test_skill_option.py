"""Packaged skills: what they hold, and what `--skill` takes of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from exporter.cli.main import cli
from exporter.common.errors import BadInput
from exporter.prompts.packaged import EVERYDAY, everyday_prompts, packaged_sha256, records_of
from exporter.prompts.packaged_skills import (
    OTHERS,
    languages,
    other_prompts,
    packaged_files,
    packaged_skill,
    packaged_skills,
)
from exporter.prompts.skills import SkillPrompts, collect
from exporter.recipes.settings import ExportSettings, SkillSettings

NAMES = ("code", "legal-advice", "maths", "medical-advice", "poems", "translation")


def collected(*packaged: str, **settings: Any) -> SkillPrompts:
    return collect(SkillSettings(packaged=packaged, **settings))


def sources(prompts: SkillPrompts) -> Counter[str]:
    return Counter(prompt.source for prompt in prompts.retain)


def test_names() -> None:
    assert packaged_skills() == NAMES
    with pytest.raises(BadInput, match=r"^--skill: no skill 'sums'; there are code, legal-advice, maths"):
        packaged_skill("sums")


@pytest.mark.parametrize("name", NAMES)
def test_a_skill(name: str) -> None:
    skill = packaged_skill(name)
    records = records_of(f"skills/{name}.jsonl")
    assert skill.name == name and skill.title and skill.description and skill.belongs and skill.not_belonging
    for side, prompts, source in (
        ("forget", skill.forget, name),
        ("near-miss", skill.near_misses, f"{name} near misses"),
    ):
        assert {prompt.source for prompt in prompts} == {source}
        for prompt in prompts:
            record = {"side": side, "form": prompt.form, "language": prompt.language, "prompt": prompt.text}
            assert records[prompt.row - 1] == record
    assert len(skill.forget) + len(skill.near_misses) == len(records)
    for other, rows in skill.shared_rows.items():
        assert other in skill.shared and len(set(rows)) == len(rows)
        assert set(rows) <= {prompt.row for prompt in packaged_skill(other).forget}
    # A skill of the user's own may share a name with no source of ours.
    assert packaged_skill(name) is skill


@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_the_other_skills(name: str) -> None:
    skill = packaged_skill(name)
    found = other_prompts([skill])
    assert Counter(prompt.source for prompt in found) == {f"skill {each}": OTHERS for each in NAMES if each != name}
    assert found == other_prompts([skill])
    for other in set(NAMES) - {name}:
        mine = [prompt for prompt in found if prompt.source == f"skill {other}"]
        forms = Counter(prompt.form for prompt in mine)
        assert set(forms.values()) == {OTHERS // len(forms)}
        assert not {prompt.row for prompt in mine} & set(skill.shared_rows.get(other, ()))


def test_one_skill_alone() -> None:
    prompts = collected("code")
    page = packaged_skill("code")
    assert prompts.skill.name == "code" and list(prompts.forget) == list(page.forget)
    left_out = {prompt.row for prompt in everyday_prompts() if prompt.kind == "code"} | {*page.everyday_prompts}
    assert prompts.notes == (f"code: {len(left_out)} everyday prompts left out, as belonging to it.",)
    assert not left_out & {prompt.row for prompt in prompts.retain if prompt.source == EVERYDAY}
    assert sources(prompts) == {
        EVERYDAY: len(everyday_prompts()) - len(left_out),
        "code near misses": len(page.near_misses),
        **{f"skill {each}": OTHERS for each in NAMES if each != "code"},
    }
    (record,) = prompts.records
    assert (record.flag, record.label, record.options, record.prompts) == ("--skill", "code", {}, len(page.forget))
    assert record.fingerprint == packaged_sha256(["skills/code.jsonl"])["skills/code.jsonl"]


def test_several_skills_are_one() -> None:
    prompts = collected("maths", "poems", "maths")
    assert prompts.skill.name == "skill"
    assert [record.label for record in prompts.records] == ["maths", "poems"]
    assert {prompt.source for prompt in prompts.forget} == {"maths", "poems"}
    others = {f"skill {each}" for each in NAMES if each not in ("maths", "poems")}
    assert set(sources(prompts)) == {EVERYDAY, "maths near misses", "poems near misses", *others}


def test_without_everyday_prompts() -> None:
    prompts = collected("code", everyday=False)
    assert set(sources(prompts)) == {"code near misses"} and prompts.notes == ()
    with pytest.raises(BadInput, match="--everyday-without: no kind 'storys'"):
        collected("code", everyday_without=("storys",))


def test_beside_sources(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("What is 3 + 4?\nWhat is 4 + 5?\n")
    prompts = collect(SkillSettings((str(path),), packaged=("maths",)))
    assert prompts.skill.name == "skill"
    assert [(record.flag, record.label) for record in prompts.records] == [
        ("--forget", "mine.txt"),
        ("--skill", "maths"),
    ]
    assert {prompt.source for prompt in prompts.forget} == {"mine.txt", "maths"}
    named = SkillSettings(packaged=("maths",), name="sums")
    assert named.name == "sums"


def test_no_prompts_at_all() -> None:
    with pytest.raises(BadInput, match=r"^--forget or --skill: name a source"):
        SkillSettings()
    SkillSettings(packaged=("maths",), everyday=False)  # near misses tell layers apart
    with pytest.raises(BadInput, match="--skill: no skill 'sums'"):
        collected("sums")


def test_files_that_an_export_depends_on() -> None:
    everyday = [
        "everyday.jsonl",
        *(f"everyday/{name}.jsonl" for name in ("english", "languages", "ordinary", "wider")),
    ]
    around = ["system_prompts.jsonl", "exchanges.jsonl"]

    def files(skill: SkillSettings, **settings: Any) -> list[str]:
        return packaged_files(ExportSettings("model", Path("out"), (skill,), **settings))

    assert files(SkillSettings(("a",), region="hypercube")) == [*everyday, *around]
    assert files(SkillSettings(("a",), ("b",), method="na")) == everyday
    alone = SkillSettings(("a",), ("b",), everyday=False, region="hypercube")
    assert files(alone, formats="plain") == files(alone, prompt_template="Q: {prompt}") == []
    maths = ["skills/maths.jsonl", "skills/maths.toml"]
    assert files(SkillSettings(packaged=("maths",), everyday=False), formats="plain") == maths
    others = [f"skills/{each}.jsonl" for each in NAMES if each != "maths"]
    paper = SkillSettings(packaged=("maths",), region="hypercube")
    assert files(paper) == [*maths, *everyday, *others, *around]
    # The kinds of turn that regions along discriminants are fitted for.
    turns = [name for name in files(SkillSettings(packaged=("maths",))) if name not in files(paper)]
    assert len(turns) == 8 and all(name.startswith("turns/") for name in turns)
    renderings = ["renderings.jsonl"]
    assert files(SkillSettings(("a",), region="discriminant")) == [*everyday, *renderings, *around, *turns]


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["skills", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_the_command_lists_them() -> None:
    text = invoke()
    assert all(name in text and packaged_skill(name).title in text for name in NAMES)
    listed = json.loads(invoke("--json"))["skills"]
    assert [each["name"] for each in listed] == [*NAMES, *languages()]
    maths = listed[2]
    assert maths["forget"] == len(packaged_skill("maths").forget)
    assert maths["near_misses"] == len(packaged_skill("maths").near_misses)
    assert len(maths["forms"]) >= 8 and "de" in maths["languages"]


@pytest.mark.parametrize("name", NAMES)
def test_the_command_shows_a_page(name: str) -> None:
    skill, text = packaged_skill(name), invoke(name)
    for line in (skill.title, skill.description, *skill.belongs, *skill.not_belonging, *skill.shared.values()):
        assert line in text
    page = json.loads(invoke(name, "--json"))
    assert page["name"] == name and page["belongs"] == list(skill.belongs)
    assert page["not_belonging"] == list(skill.not_belonging) and page["shared"] == skill.shared


def test_the_command_knows_no_other() -> None:
    with pytest.raises(BadInput, match="--skill: no skill 'sums'"):
        CliRunner().invoke(cli, ["skills", "sums"], standalone_mode=False, catch_exceptions=False)


def test_regions_by_what_is_named() -> None:
    own = {"forget": ("a.txt",)}
    for skill in (
        {"packaged": ("maths",)},
        own,
        own | {"layer": "last"},
        own | {"alpha": 0.4, "region": "discriminant"},
    ):
        assert SkillSettings(**skill).discriminates
    # A size in standard deviations is a hypercube's, and half-spaces need another side.
    for skill in (own | {"alpha": 3.0}, own | {"everyday": False, "layer": 1}, own | {"region": "hypercube"}):
        assert not SkillSettings(**skill).discriminates
    assert SkillSettings(**own, everyday=False, retain=("b.txt",)).discriminates
    with pytest.raises(BadInput, match="--region discriminant: needs prompts to be answered"):
        SkillSettings(**own, region="discriminant", everyday=False, layer=1)
    with pytest.raises(BadInput, match="--region: 'cube' is not one of auto, hypercube, discriminant"):
        SkillSettings(**own, region="cube")


def test_a_language_is_a_skill() -> None:
    skill = packaged_skill("language:de")
    assert "language:de" in languages() and len(languages()) == 10
    assert len(skill.forget) >= 80 and {prompt.language for prompt in skill.forget} == {"de"}
    assert not skill.near_misses and skill.fingerprint != packaged_skill("language:fr").files[0]
    prompts = collected("language:de", "language:fr")
    assert {prompt.source for prompt in prompts.forget} == {"language:de", "language:fr"}
    # Nothing in these languages is left on the other side.
    assert prompts.retain and not {"de", "fr"} & {prompt.language for prompt in prompts.retain}
    assert {f"skill {name}" for name in NAMES} < {prompt.source for prompt in prompts.retain}
    settings = ExportSettings("m", Path("o"), (SkillSettings(packaged=("language:de",), everyday=False),))
    assert set(packaged_files(settings)) >= {*skill.files}


def test_a_language_without_prompts_is_refused() -> None:
    with pytest.raises(BadInput, match=r"no skill 'language:xx'; .* language:CODE with CODE one of ar, de, en, es"):
        packaged_skill("language:xx")
