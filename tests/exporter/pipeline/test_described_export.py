"""`unskill export --describe` with a faked writer, from a description to a checkpoint, and again by its own recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from click.testing import CliRunner

from exporter.checkpoint.given_prompts import read_given
from exporter.checkpoint.reading import read_stored
from exporter.cli.main import cli
from exporter.common.errors import BadInput
from exporter.common.progress import Progress
from exporter.models.files import find_base
from exporter.models.loading import LoadedModel, load
from exporter.pipeline.described import write_candidates, writer_of
from exporter.pipeline.run import export
from exporter.prompts.requests import Question
from exporter.prompts.written import read_written
from exporter.recipes.recipe import merged_settings
from exporter.recipes.settings import ExportSettings, SkillSettings
from tests.tiny import RETAIN, one_thread, tiny_model, write_prompts
from tests.written import DESCRIBE, NOT, fake_writer

NAME = "Word problems with small numbers"


def asked(folder: Path, **changes: Any) -> ExportSettings:
    """Settings of an export into folder/out. In a random model nothing is told apart, so the threshold is given."""
    given = {"model": str(folder / "base"), "out": folder / "out", "retain": (str(folder / "retain.jsonl"),)}
    given |= {"describe": DESCRIBE, "but_not": NOT, "everyday": False, "layer": 1, "alpha": 0.4, "force": True}
    given |= {"region": "discriminant"}
    return merged_settings({}, {**given, "figures": False, "quiet": True, **changes})


def exported(settings: ExportSettings, **numbers: int) -> list[str]:
    """Export with a faked writer; returns what was said."""
    said: list[str] = []
    with one_thread(), mock.patch("exporter.pipeline.described.writer_of", lambda *_: fake_writer(**numbers)):
        export(settings, said.append)
    return said


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("described")
    tiny_model(folder / "base", chat=False, max_position_embeddings=2048)
    write_prompts(folder / "retain.jsonl", RETAIN)
    return folder


@pytest.fixture(scope="module")
def done(base: Path) -> Iterator[tuple[Path, list[str]]]:
    """A checkpoint whose prompts are kept beside it, and what was said while it was made."""
    yield base, exported(asked(base, save_prompts=base / "kept.jsonl", generator=str(base / "base")))


def test_the_checkpoint_and_its_prompts(done: tuple[Path, list[str]]) -> None:
    folder, said = done
    kept = read_written(str(folder / "kept.jsonl"))
    assert f"{NAME}: base wrote 40 usable forget prompts and 30 near misses; 0 other lines were left out." in said
    assert len(kept.forget) == 40 and len(kept.near_misses) == 30
    stored = read_stored(str(folder / "out"))
    (skill,) = stored.skills
    record = skill.summary.sources[-1]
    assert (record.flag, record.label, record.options, record.prompts) == ("--describe", "description", {}, 40)
    assert record.fingerprint == kept.fingerprint and skill.name == NAME
    found = skill.summary.key_space
    assert found is not None and found.discriminant is not None
    assert found.blocked.keys() == {"description"} and "description near misses" in found.false_blocks
    assert found.discriminant.near_misses.total and found.discriminant.near_miss_forms
    assert found.discriminant.forms.keys() == {prompt.form for prompt in kept.forget}
    # No text of a prompt is in the checkpoint.
    contents = b"".join(path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file())
    assert not any(prompt.text.encode() in contents for prompt in kept.forget if len(prompt.text) > 30)


def test_the_card_names_the_description(done: tuple[Path, list[str]]) -> None:
    assert "Example prompts: description (40)" in (done[0] / "out" / "README.md").read_text(encoding="utf-8")


def test_the_same_again_by_its_recipe(done: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = done
    recipe = folder / "out" / "reproduce" / "recipe.toml"
    text = recipe.read_text(encoding="utf-8")
    assert f'describe = "{DESCRIBE}"' in text and f'but_not = "{NOT}"' in text and 'generator = "base"' in text
    assert "save_prompts" not in text and "kept.jsonl,sha256=" in text and str(folder) not in text
    command = ["export", str(tmp_path / "again"), "--recipe", str(recipe), "--data", str(folder), "--no-figures"]
    with one_thread():
        result = CliRunner().invoke(cli, [*command, "--quiet"])
    assert result.exit_code == 0, result.output
    hashes = [
        json.loads((each / "reproduce" / "hashes.json").read_text()) for each in (folder / "out", tmp_path / "again")
    ]
    assert hashes[0] == hashes[1]


def test_the_kept_file_gives_texts_again(done: tuple[Path, list[str]]) -> None:
    folder, _ = done
    stored = read_stored(str(folder / "out"))
    kept = read_written(str(folder / "kept.jsonl"))
    given = read_given(stored, [str(folder / "kept.jsonl")], [])
    assert all(given[prompt.row, prompt.sha256] == prompt for prompt in (*kept.forget, *kept.near_misses))


def test_prompts_that_were_not_kept_cannot_be_read_again(done: tuple[Path, list[str]], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    lines = (done[0] / "out" / "reproduce" / "recipe.toml").read_text(encoding="utf-8").splitlines()
    recipe.write_text("\n".join(line for line in lines if not line.startswith("read_prompts")), encoding="utf-8")
    result = CliRunner().invoke(
        cli, ["export", str(tmp_path / "again"), "--recipe", str(recipe), "--data", str(done[0])]
    )
    assert isinstance(result.exception, BadInput) and not (tmp_path / "again").exists()
    assert str(result.exception).startswith(f"--recipe: the prompts of {NAME} were written by a model and not kept")


def test_a_model_that_is_too_weak(base: Path, tmp_path: Path) -> None:
    settings = asked(base, out=tmp_path / "out", save_prompts=tmp_path / "kept.jsonl")
    with pytest.raises(BadInput, match=r"^--describe: base wrote 23 usable forget prompts in .* --generator"):
        exported(settings, forget=23)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"save_prompts": "base/config.jsonl"}, "lies in OUT"),
        ({"save_prompts": "nowhere/kept.jsonl"}, "does not exist; make it first"),
        ({"save_prompts": "retain.jsonl"}, "exists: name another file, read it by --read-prompts, or --overwrite"),
        ({"save_prompts": "retain.jsonl", "overwrite": True}, "--overwrite will not replace it"),
        ({"generator": "nowhere"}, "--generator"),
        ({"read_prompts": "nowhere.jsonl"}, "--read-prompts: no such file"),
    ],
)
def test_found_before_the_model_is_loaded(
    changes: dict[str, Any], said: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = {"out": base / "base"} if "OUT" in said else {"out": base / "new"}
    given = {**changes} | ({"save_prompts": Path(changes["save_prompts"])} if "save_prompts" in changes else {})
    with mock.patch("exporter.pipeline.run.load", side_effect=AssertionError), pytest.raises(BadInput) as error:
        export(asked(base, **out, **given), lambda text: None)
    assert said in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("items", [[], ["4 + 3 = 7", "12345"], ["a long " * 20]])
def test_without_sub_topics_the_kind_is_the_subject(items: list[str]) -> None:
    asked_for: list[str] = []

    def write(questions: Sequence[Question], what: str) -> list[list[str]]:
        asked_for.extend(question.text for question in questions)
        return [items if what.endswith("sub-topics") else ["Why?"] for _ in questions]

    found = write_candidates(SkillSettings(describe=DESCRIBE, but_not=NOT), write)
    assert len(found) == len(asked_for) - 2
    assert {text.partition("Subject: ")[2].partition(". Write")[0] for text in asked_for[2:]} == {DESCRIBE, NOT}


@pytest.fixture(scope="module")
def loaded(base: Path) -> LoadedModel:
    return load(find_base(str(base / "base")), "float32", "cpu")


def test_a_model_writes_with_the_seed(base: Path, loaded: LoadedModel) -> None:
    example = "Write two things.", "1. A thing\n2. Another"
    questions = [Question("Write three things.", example), Question("Write four other things, please.", example)]

    def listed(text: str) -> list[str]:
        return [text, "cut off"]

    with (
        mock.patch("exporter.pipeline.described.ANSWER_TOKENS", 24),
        mock.patch("exporter.pipeline.described.items_of", listed),
    ):
        one, again, other = (
            writer_of(loaded, asked(base, seed=seed), Progress())(questions, "lists") for seed in (1, 1, 2)
        )
    assert one == again != other and len(one) == 2
    # No answer has ended by then, so the last item of each is left out.
    assert all(len(items) == 1 and items[0].startswith("1. ") for items in one)
