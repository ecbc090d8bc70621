"""Sources of one name: told apart in everything that is recorded, and found again by the name of their file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from exporter.checkpoint.given_prompts import read_given
from exporter.checkpoint.reading import Stored, StoredSkill
from exporter.checkpoint.summary import SkillSummary, SourceSummary, Summary
from exporter.prompts.skills import SkillPrompts, SourceRecord, collect
from exporter.recipes.settings import SkillSettings
from tests.tiny import FORGET, RETAIN, one_skill, write_prompts

NAMES = ("set.jsonl", "set #1.jsonl", "set #2", "a #b")


def recorded(source: SourceRecord) -> SourceSummary:
    return SourceSummary.model_validate(asdict(source))


def collected(folder: Path, names: list[str]) -> tuple[SkillPrompts, list[str]]:
    """A skill with a forget source of five prompts for each name, every one in a folder of its own."""
    paths = []
    for number, name in enumerate(names):
        (folder / str(number)).mkdir()
        texts = FORGET[5 * number : 5 * number + 5]
        # A folder in it, so that it is taken for a file whatever its ending.
        paths.append(str(write_prompts(folder / str(number) / f"{name}.jsonl", texts)))
    retain = write_prompts(folder / "retain.jsonl", RETAIN[:9])
    settings = one_skill("model", folder / "out", paths[0], retain, everyday=False)
    (skill,) = settings.skills
    return collect(type(skill)(**{**vars(skill), "forget": tuple(paths)})), paths


@pytest.mark.parametrize("name", NAMES)
def test_files_of_one_name_have_labels_of_their_own(name: str, tmp_path: Path) -> None:
    prompts, _ = collected(tmp_path, [name, name, name])
    file = f"{name}.jsonl"
    assert [each.label for each in prompts.records[:3]] == [file, f"{file} #2", f"{file} #3"]
    assert [recorded(each).name for each in prompts.records[:3]] == [file] * 3
    assert {prompt.source for prompt in prompts.forget} == {file, f"{file} #2", f"{file} #3"}


@pytest.mark.parametrize(("label", "name"), [("a.csv", "a.csv"), ("a.csv #2", "a.csv"), ("set #1.csv", "set #1.csv")])
def test_a_label_without_a_number_is_read_as_version_0_1_wrote_it(label: str, name: str) -> None:
    kept = SourceSummary(flag="--forget", label=label, options={}, fingerprint="", prompts=1)
    assert kept.name == name


def test_prompts_of_a_packaged_skill_are_known_without_sources() -> None:
    prompts = collect(SkillSettings(packaged=("maths",)))
    every = (*prompts.forget, *prompts.retain)
    summary = SkillSummary.model_construct(sources=tuple(map(recorded, prompts.records)))
    whole = Summary.model_construct(skills=(summary,))
    given = read_given(Stored("checkpoint", {}, {}, whole, (StoredSkill("maths", summary, {}, {}),)), [], [])
    assert len(given.known([{"row": each.row, "sha256": each.sha256} for each in every])) == len(every)


@pytest.mark.parametrize("name", NAMES)
def test_each_file_of_one_name_is_found_again(name: str, tmp_path: Path) -> None:
    prompts, paths = collected(tmp_path, [name, name])
    summary = SkillSummary.model_construct(sources=tuple(map(recorded, prompts.records)))
    parts = {
        "forget.report": [
            {"source": each.source, "row": each.row, "sha256": each.sha256, "format": "plain"}
            for each in prompts.forget
        ]
    }
    whole = Summary.model_construct(skills=(summary,))
    stored = Stored("checkpoint", {}, {}, whole, (StoredSkill("skill", summary, parts, {}),))
    for number, path in enumerate(paths):
        given = read_given(stored, [path], [])
        found = [prompt.text for prompt in given.known(parts["forget.report"])]
        assert found == FORGET[5 * number : 5 * number + 5]
