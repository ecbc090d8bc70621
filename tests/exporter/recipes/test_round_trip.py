"""Settings, sources and templates, drawn at random, through the text of a recipe and back; paths that may be told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.checkpoint.recipe import base_files, portable, recipe_toml
from exporter.models.files import find_base
from exporter.pipeline.inputs import check_packaged
from exporter.prompts.packaged import packaged_sha256
from exporter.prompts.packaged_skills import packaged_files, packaged_skills
from exporter.prompts.skills import SkillPrompts, SourceRecord
from exporter.prompts.sources import Source
from exporter.recipes.recipe import RECORDED, merged_settings, read_recipe
from exporter.recipes.recorded import text_sha256
from exporter.recipes.settings import COMPATS, DRAWS, DTYPES, METHODS, SCORES, ExportSettings, SkillSettings
from exporter.recipes.templates import read_template, write_template

# Quotes, commas, line ends and escapes of both syntaxes, and anything else.
TEXT = st.text(
    st.one_of(st.sampled_from("\"'\\\n\r\t,=@#[]{}n\x00\x7f\u2028é"), st.characters(codec="utf-8")), max_size=20
)
FILLED = TEXT.filter(str.strip)
LINE = FILLED.filter(str.isprintable)
NUMBER = st.floats(0.001, 0.999)


@st.composite
def sources(draw: st.DrawFn) -> Source:
    """A source whose file need not be there; relative, so that its path stays as it is."""
    # A name that is a path, and not the id of a dataset.
    location = draw(FILLED.filter(lambda text: portable(text) == text and "\x00" not in text)) + "x.jsonl"
    return Source(
        location,
        column=draw(st.none() | FILLED),
        answer=draw(st.none() | FILLED),
        limit=draw(st.none() | st.integers(1, 10**9)),
        template=draw(st.none() | FILLED),
    )


@st.composite
def skills(draw: st.DrawFn, name: str) -> tuple[SkillSettings, tuple[Source, ...]]:
    method = draw(st.sampled_from(METHODS))
    forget, retain = (tuple(draw(st.lists(sources(), min_size=1, max_size=3))) for _ in range(2))
    everyday = draw(st.booleans())
    packaged = tuple(draw(st.lists(st.sampled_from(packaged_skills()), max_size=2, unique=True)))
    settings = SkillSettings(
        tuple(each.spec for each in forget),
        tuple(each.spec for each in retain),
        packaged,
        name=name,
        method=method,
        layer=draw(st.none() | st.just("last") | st.integers(0, 99)),
        alpha=draw(st.none() | NUMBER),
        target_block_rate=draw(NUMBER),
        max_false_block=draw(NUMBER),
        beta=draw(st.none() | NUMBER),
        score=None if method == "sp" else draw(st.none() | st.sampled_from(SCORES)),
        max_retain_loss=draw(NUMBER),
        everyday=everyday,
        everyday_without=tuple(draw(st.lists(FILLED, max_size=2))) if everyday else (),
    )
    return settings, (*forget, *retain)


@st.composite
def exports(draw: st.DrawFn) -> tuple[ExportSettings, list[SkillPrompts]]:
    names = draw(st.lists(LINE, min_size=1, max_size=3, unique=True))
    drawn = [draw(skills(name)) for name in names]
    adjusts = any(skill.adjusts for skill, _ in drawn)
    compat = draw(st.none() | st.sampled_from(COMPATS)) if adjusts else None
    settings = ExportSettings(
        "base",
        Path("out"),
        tuple(skill for skill, _ in drawn),
        refusal=draw(FILLED),
        draws="sampled" if compat else draw(st.sampled_from(DRAWS)),
        compat=compat,
        prompt_template=draw(FILLED),
        formats=draw(st.sampled_from(("mixed", "plain"))),
        system_prompts=tuple(draw(st.lists(FILLED, max_size=3, unique=True))),
        skip_long=draw(st.booleans()),
        seed=draw(st.integers(0, 2**63 - 1)),
        dtype=draw(st.sampled_from(DTYPES)),
        device=draw(FILLED),
        batch_size=draw(st.none() | st.integers(1, 10**6)),
        force=draw(st.booleans()),
    )
    prompts = []
    for skill, given_sources in drawn:
        flags = ["--forget"] * len(skill.forget) + ["--retain"] * len(skill.retain)
        records = [
            SourceRecord(flag, source.label, source.options, text_sha256(source.location), 1)
            for flag, source in zip(flags, given_sources, strict=True)
        ]
        records += [SourceRecord("--skill", each, {}, text_sha256(each), 1) for each in skill.packaged]
        prompts.append(SkillPrompts(skill, (), (), tuple(records), given_sources))
    return settings, prompts


@settings(deadline=None)
@given(case=exports())
def test_settings_come_back(case: tuple[ExportSettings, list[SkillPrompts]], base: Path) -> None:
    asked, prompts = case
    path = base.parent / "recipe.toml"
    path.write_text(recipe_toml(asked, prompts, find_base(str(base)), threads=3), encoding="utf-8")
    values = read_recipe(path)
    again = merged_settings(values, {"out": Path("out"), "system_prompts": asked.system_prompts[::-1]})
    assert again.threads == 3
    for name in ExportSettings.__dataclass_fields__.keys() - {"threads", "skills"}:
        assert getattr(again, name) == getattr(asked, name), name
    for ours, theirs, read in zip(again.skills, asked.skills, prompts, strict=True):
        for name in SkillSettings.__dataclass_fields__.keys() - {"forget", "retain"}:
            assert getattr(ours, name) == getattr(theirs, name), name
        found = [Source.parse(spec, "--forget") for spec in (*ours.forget, *ours.retain)]
        for source, given_source in zip(found, read.sources, strict=True):
            assert source.sha256 == text_sha256(given_source.location)
            assert (source.location, source.options) == (given_source.location, given_source.options)
    assert values[RECORDED].base == base_files(find_base(str(base)))
    assert values[RECORDED].packaged == packaged_sha256(packaged_files(asked))
    check_packaged(values[RECORDED], again)


@settings(deadline=None)
@given(source=sources())
def test_a_source_is_read_from_its_text(source: Source) -> None:
    assert Source.parse(source.spec, "--forget") == source


@settings(deadline=None)
@given(text=st.text(st.sampled_from("\\n@N\n{}"), max_size=9))
def test_templates_come_back(text: str) -> None:
    assert read_template(write_template(text), "--prompt-template") == text


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("maths.jsonl", "maths.jsonl"),
        ("data/maths.jsonl", "data/maths.jsonl"),
        ("./maths.jsonl", "./maths.jsonl"),
        ("/home/someone/maths.jsonl", "maths.jsonl"),
        ("../someone/maths.jsonl", "maths.jsonl"),
        ("data/../../someone/maths.jsonl", "maths.jsonl"),
        ("~/maths.jsonl", "maths.jsonl"),
        ("~someone/maths.jsonl", "maths.jsonl"),
    ],
)
def test_what_is_told_of_a_path(path: str, told: str) -> None:
    assert portable(path) == told
