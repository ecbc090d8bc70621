"""What a recipe records of its export: files found again, and inputs and versions that changed since."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from exporter.checkpoint.recipe import base_files, recipe_toml
from exporter.common.errors import BadInput
from exporter.models.files import find_base
from exporter.pipeline.inputs import check_packaged, check_recorded, locate
from exporter.pipeline.plan import plan
from exporter.prompts.skills import SkillPrompts, SourceRecord, collect
from exporter.prompts.sources import Source
from exporter.recipes.recipe import RECORDED, merged_settings, read_recipe, recorded_in
from exporter.recipes.recorded import Recorded, text_sha256
from exporter.recipes.settings import ExportSettings, SkillSettings
from tests.tiny import tiny_model

FORMAT_1 = Path(__file__).parents[2] / "data" / "format-1"


def spec(text: str, name: str = "a.txt") -> str:
    return f"{name},sha256={hashlib.sha256(text.encode()).hexdigest()}"


def test_files_are_told_apart_by_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(folder)
    (tmp_path / "a.txt").write_text("here")
    values = {"forget": (spec("one"), spec("two"), spec("here")), RECORDED: Recorded()}
    found = locate(values, {}, [Path("one"), Path("two")])
    assert [Source.parse(each, "--forget").location for each in found["forget"]] == ["one/a.txt", "two/a.txt", "a.txt"]
    # What flags replace is not looked for, and a file that lies deeper is found by its name too.
    assert locate({"forget": ("absent.txt",), RECORDED: Recorded()}, {"forget": ("b.txt",)}, [])
    deep = locate({"retain": (spec("two", "deep/a.txt"),), RECORDED: Recorded()}, {}, [Path("two")])
    assert Source.parse(deep["retain"][0], "--retain").location == "two/a.txt"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"forget": ("absent.txt",)}, "--forget: absent.txt, which the recipe names, is not in the working directory"),
        ({"skill": [{"retain": ("absent.txt",)}]}, "--retain: absent.txt"),
        ({"statistics": Path("absent.safetensors")}, "--statistics: absent.safetensors"),
        ({"model": "absent"}, "MODEL: the recipe's folder absent"),
    ],
)
def test_files_that_are_not_there(values: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        locate({**values, RECORDED: Recorded()}, {}, [tmp_path])
    assert expected in str(error.value) and "nor under --data; --data DIR names" in str(error.value)
    locate(values, {}, [tmp_path])  # a recipe of somebody's own: whoever reads the file says so


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--data: .*absent is not a folder"):
        locate({}, {}, [tmp_path / "absent"])


def test_another_base(base: Path, tmp_path: Path) -> None:
    recorded = Recorded(base_files(find_base(str(base))))
    check_recorded(recorded, find_base(str(base)), None, pytest.fail)
    other = tiny_model(tmp_path / "base", chat=True, initializer_range=0.2)
    files = "model.safetensors, tokenizer_config.json"
    with pytest.raises(
        BadInput, match=f"MODEL base: chat_template.jinja, config.json, {files} are not as the recipe's"
    ):
        check_recorded(recorded, find_base(str(other)), None, pytest.fail)
    said: list[str] = []
    check_recorded(Recorded(recorded.base, model_given=True), find_base(str(other)), None, said.append)
    assert len(said) == 1 and "the interventions will differ" in said[0]


def test_one_weight_of_another_base(base: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    recorded = Recorded(base_files(find_base(str(base))))
    copy = shutil.copytree(base, tmp_path / "base")
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nextafter(tensors["model.norm.weight"][0], torch.tensor(9.0))
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"MODEL base: model\.safetensors is not as the recipe's export found it"):
        check_recorded(recorded, find_base(str(copy)), None, pytest.fail)


def test_a_model_and_a_dataset_of_the_hub(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are recorded at their commits, and asked for at these."""
    import huggingface_hub

    commit = base.parent / ("c" * 40)
    shutil.copytree(base, commit, dirs_exist_ok=True)
    asked: list[str | None] = []

    def snapshot(model: str, revision: str | None = None, **_: Any) -> str:
        asked.append(revision)
        return str(commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    found = find_base("some/model", "v1")
    source = Source("some/data", split="test", revision="main")
    record = SourceRecord("--forget", "some/data", source.options, "d" * 40, 1)
    settings = ExportSettings("some/model", Path("out"), (SkillSettings((source.spec,)),), revision="v1")
    path = base.parent / "hub.toml"
    path.write_text(recipe_toml(settings, [SkillPrompts(settings.skills[0], (), (), (record,), (source,))], found, 1))
    again = merged_settings(locate(read_recipe(path), {}, []), {"out": Path("again")})
    assert (again.model, again.revision) == ("some/model", "c" * 40)
    assert again.skills[0].forget == (f"some/data,split=test,revision={'d' * 40}",)
    check_recorded(Recorded(base_files(found)), find_base(again.model, again.revision), None, pytest.fail)
    assert asked == ["v1", "c" * 40]
    # Another model is not looked for at the recipe's commit.
    assert merged_settings(read_recipe(path), {"model": "other/model", "out": Path("again")}).revision is None
    with pytest.raises(BadInput, match="--revision: is for models on the Hub, and MODEL base is a folder"):
        find_base(str(base), "main")


def alone(base: Path, folder: Path, **flags: Any) -> tuple[Recorded, ExportSettings]:
    """The recipe of an export of a packaged skill alone, followed with flags: what it records, and the settings."""
    skill = SkillSettings(packaged=("maths",), everyday_without=("story",))
    asked = ExportSettings("base", Path("out"), (skill,))
    path = folder / "recipe.toml"
    path.write_text(recipe_toml(asked, [collect(skill)], find_base(str(base)), 1), encoding="utf-8")
    (folder / "versions.json").write_text('{"unskill": "0.2.0"}')
    values, given_flags = read_recipe(path), {"out": Path("again"), **flags}
    recorded = recorded_in(values, given_flags)
    assert recorded is not None
    return recorded, merged_settings(values, given_flags)


def test_a_packaged_skill_in_a_recipe(base: Path, tmp_path: Path) -> None:
    recorded, again = alone(base, tmp_path)
    (skill,) = again.skills
    assert (skill.name, skill.packaged, skill.forget, skill.retain) == ("maths", ("maths",), (), ())
    text = (tmp_path / "recipe.toml").read_text()
    assert '"maths",' in text and "[recorded.packaged]" in text and '"skills/maths.jsonl" = ' in text
    check_packaged(recorded, again)


@pytest.mark.parametrize("name", ["skills/maths.jsonl", "skills/code.jsonl", "everyday/english.jsonl"])
def test_packaged_prompts_that_changed(name: str, base: Path, tmp_path: Path) -> None:
    recorded, again = alone(base, tmp_path)
    assert recorded.packaged is not None and name in recorded.packaged
    for other in ({**recorded.packaged, name: "0" * 64}, {k: v for k, v in recorded.packaged.items() if k != name}):
        with pytest.raises(BadInput, match=rf"^--recipe: packaged prompts .*: {name}; unskill 0\.2\.0 has them"):
            check_packaged(replace(recorded, packaged=other), again)
    with pytest.raises(BadInput, match=r"everyday/gone\.jsonl"):
        check_packaged(replace(recorded, packaged={**recorded.packaged, "everyday/gone.jsonl": ""}), again)


def test_packaged_prompts_that_flags_leave_out_or_add(base: Path, tmp_path: Path) -> None:
    recorded, again = alone(base, tmp_path, everyday=False, everyday_without=(), formats="plain")
    changed = dict.fromkeys(recorded.packaged or {}, "0" * 64)
    maths = {name: digest for name, digest in (recorded.packaged or {}).items() if "maths" in name}
    check_packaged(replace(recorded, packaged=changed | maths), again)
    recorded, again = alone(base, tmp_path, packaged=("maths", "code"))
    check_packaged(recorded, again)


@pytest.mark.parametrize("name", ["ksd", "na-ksd"])
def test_a_recipe_of_version_0_1(name: str) -> None:
    """It names no packaged files: it is followed where it uses none."""
    folder = FORMAT_1 / name
    flags = {"out": Path("again"), "model": str(FORMAT_1 / "base")}
    values = locate(read_recipe(folder / "reproduce" / "recipe.toml"), flags, [FORMAT_1])
    recorded = recorded_in(values, flags)
    assert recorded is not None and recorded.packaged is None
    assert {skill.region for skill in merged_settings(values, flags).skills} == {"hypercube"}
    expected = r"--recipe: its export used packaged prompts, and system_prompts\.jsonl.*; unskill 0\.1\.0 has them"
    with pytest.raises(BadInput, match=expected):
        plan(merged_settings(values, flags), pytest.fail, recorded)
    check_packaged(recorded, merged_settings(values, {**flags, "formats": "plain"}))
    with pytest.raises(BadInput, match=r"everyday\.jsonl"):
        check_packaged(recorded, merged_settings(values, {**flags, "formats": "plain", "everyday": True}))


def test_system_prompts_are_asked_for() -> None:
    recorded = Recorded(system_prompts=(text_sha256("b"), text_sha256("a")))
    assert recorded.ordered(["a", "b"]) == ("b", "a")
    for texts, missing in (
        ((), "2 missing here; 0 not among them"),
        (("a", "c"), "1 missing here; 1 not among them"),
    ):
        with pytest.raises(BadInput) as error:
            recorded.ordered(texts)
        assert "--system-prompt: of 2 in the recipe's export" in str(error.value)
        assert missing in str(error.value)


def test_other_versions_are_told_of() -> None:
    said: list[str] = []
    recorded = Recorded(versions={"torch": "2.6", "threads": 2, "batches_halved": False})
    recorded.compare({"torch": "2.6", "threads": 2}, said.append)
    assert not said
    recorded.compare({"torch": "2.7", "threads": 2}, said.append)
    assert said == [
        "The recipe's export was made with torch 2.6 (here 2.7): the interventions may differ in their last bits."
    ]


def test_batches_that_were_halved_are_recorded() -> None:
    """Their sums depend on the memory that there was, so nobody can promise the same bytes."""
    from exporter.common.progress import Progress
    from exporter.models.prober import KeyProber
    from exporter.prompts.formats import Query
    from exporter.prompts.sources import Prompt

    def run(rows: list[int]) -> int:
        if len(rows) > 2:
            raise MemoryError
        return len(rows)

    prober: Any = SimpleNamespace(batch_size=4, progress=Progress(), halved=False)
    queries = [Query(Prompt("a", "b", row), "plain", (1, 2)) for row in range(4)]
    assert list(KeyProber.batches(prober, queries, run, "what")) == [2, 2]
    assert prober.halved
    said: list[str] = []
    Recorded(versions={"batches_halved": True}).compare({}, said.append)
    assert len(said) == 1 and "ran out of memory" in said[0]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("recorded = 1", "[recorded] may hold base, packaged, statistics, system_prompts"),
        ("[recorded]\npackaged = 'x'", "may hold only sha256 digests"),
        ("[recorded.packaged]\n'everyday.jsonl' = 1", "may hold only sha256 digests"),
        ("[recorded]\nmodel = 'x'", "[recorded] may hold"),
        ("[recorded]\nbase = 'x'", "may hold only sha256 digests"),
        ("[recorded]\nsystem_prompts = [1]", "may hold only sha256 digests"),
        ("[recorded]\nstatistics = 1", "may hold only sha256 digests"),
    ],
)
def test_a_table_that_no_export_writes(table: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(table)
    with pytest.raises(BadInput) as error:
        read_recipe(tmp_path / "recipe.toml")
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("a.txt,sha256=abc", "is not 64 hex digits"),
        (f"some/dataset,sha256={'0' * 64}", "sha256= is for local files"),
    ],
)
def test_a_digest_that_is_none(spec: str, expected: str) -> None:
    from exporter.prompts.sources import load_prompts

    with pytest.raises(BadInput, match=expected):
        load_prompts(Source.parse(spec, "--forget"), "--forget")
