"""The summary as types: what version 0.1.0 wrote is read, and what is written is read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.checkpoint.sentences import warning_lines
from exporter.checkpoint.summary import ExportWarning, Summary

FORMAT_1 = Path(__file__).parents[2] / "data" / "format-1"


def content(name: str) -> dict[str, Any]:
    return json.loads((FORMAT_1 / name / "reproduce" / "summary.json").read_text())


@pytest.mark.parametrize("name", ["ksd", "na-ksd"])
def test_format_1_is_read_and_written_as_it_was(name: str) -> None:
    found = Summary.from_json(content(name))
    expected = content(name)
    for source in expected["skills"][0]["sources"]:
        source["number"] = None  # which version 0.1.0 did not record
    assert found.to_json() == expected and Summary.from_json(expected) == found
    (skill,) = found.skills
    assert skill.key_space is not None and skill.key_space.alpha.value == 2.75
    assert (skill.neurons is None) == (name == "ksd")


def test_without_warnings_and_with_a_field_of_a_later_version() -> None:
    early = {key: value for key, value in content("ksd").items() if key not in ("warnings", "shared_neurons")}
    found = Summary.from_json(early | {"later": [1]})
    assert warning_lines(found) == [] and found.shared_neurons == ()


@pytest.mark.parametrize("change", [{"skills": 7}, {"seed": "none"}, {"skills": [{"name": "x"}]}])
def test_what_is_no_summary(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))) as error:
        Summary.from_json(content("ksd") | change)
    assert "\n" not in str(error.value)


def test_warnings_name_their_skill_where_there_are_several() -> None:
    (skill,) = Summary.from_json(content("ksd")).skills
    warnings = [
        ExportWarning(code="overlap", skill="skill", message="one"),
        ExportWarning(code="x", skill=None, message="two"),
    ]
    known = Summary.from_json(content("ksd")).model_copy(update={"warnings": tuple(warnings)})
    assert warning_lines(known) == ["one", "two"]
    assert warning_lines(known.model_copy(update={"skills": (skill, skill)})) == ["skill: one", "two"]
