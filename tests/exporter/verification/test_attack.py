"""`unskill verify --attack` on a tiny checkpoint of a packaged skill, whose prompts are replaced by simple ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save

from exporter.checkpoint.layout import PROMPTS, STATISTICS, SUMMARY
from exporter.cli.main import cli, main
from exporter.common.errors import BadInput
from exporter.methods.key_space.budget import at_most
from exporter.pipeline.run import export
from exporter.prompts.packaged import everyday_prompts, packaged_sha256, records_of
from exporter.prompts.packaged_skills import packaged_skill
from exporter.recipes.recipe import merged_settings
from exporter.verification.run import VerifySettings
from tests.corruptions import remake_hashes
from tests.damage import copy_of, edit, put
from tests.exporter.verification.checking import checks
from tests.tiny import FORGET, RETAIN, Exported, one_thread, tiny_model

FORMS = ("made up", "real")


def simple(name: str) -> tuple[dict[str, Any], ...]:
    """The records of a packaged file. Those of maths are prompts that a random model tells apart, a few real ones, and
    forget prompts that it cannot tell from near misses."""
    real = records_of(name)
    if name != "skills/maths.jsonl":
        return real
    texts = {"forget": FORGET, "near-miss": RETAIN}
    made = [
        {"side": side, "form": FORMS[0], "language": "en", "prompt": text} for side in texts for text in texts[side]
    ]
    alike = [{**made[0], "form": FORMS[1], "prompt": text.replace("today", "tonight")} for text in RETAIN[:40]]
    return (*made, *({**record, "form": FORMS[1]} for record in real[:40]), *alike)


@pytest.fixture(scope="module", autouse=True)
def simple_maths() -> Iterator[None]:
    packaged_skill.cache_clear()
    with mock.patch("exporter.prompts.packaged_skills.records_of", simple):
        yield
    packaged_skill.cache_clear()


@pytest.fixture(scope="module")
def maths(tmp_path_factory: pytest.TempPathFactory, simple_maths: None) -> Path:
    """A checkpoint of the skill. The threshold is given, so nothing is promised. One kind of everyday prompts
    is enough, for the time that more take."""
    folder = tmp_path_factory.mktemp("maths")
    base = tiny_model(folder / "base", intermediate_size=256)
    kinds = {prompt.kind for prompt in everyday_prompts() if prompt.kind} - {"roleplay"}
    about = {
        "layer": 1,
        "alpha": 0.05,
        "region": "discriminant",
        "everyday_without": tuple(sorted(kinds)),
        "figures": False,
        "force": True,
        "quiet": True,
    }
    with one_thread():
        settings = merged_settings({}, {"model": str(base), "out": folder / "out", "packaged": ("maths",), **about})
        export(settings, lambda text: None)
    return folder / "out"


@pytest.fixture
def copied(maths: Path, tmp_path: Path) -> Path:
    return copy_of(maths, tmp_path / "checkpoint")


def attacked(folder: Path, *more: str) -> Result:
    return CliRunner().invoke(cli, ["verify", str(folder), "--attack", *more])


def key_space(summary: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = summary["skills"][0]["key_space"]
    return found


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Checks by name, and "attack" is what was found."""
    done = attacked(folder, "--json", "--quiet")
    found = json.loads(done.stdout)
    assert done.exit_code == (0 if found["ok"] else 1)
    return {each["name"]: each for each in found["checks"]} | {"found": found["attack"][0]}


def test_the_report_part_is_asked_in_every_kind_of_turn(maths: Path) -> None:
    found = results(maths)
    assert found["attack"]["ok"] and found["attack: as exported"]["ok"] and found["attack: promise"]["ok"] is None
    figures = found["found"]
    stored = key_space(json.loads((maths / SUMMARY).read_text()))
    assert figures["skill"] == "maths" and figures["promise"] is None
    # Every plain prompt of the report part was counted at the export too, and decided alike.
    counted = stored["blocked"]["maths"]
    assert figures["kinds"]["plain"] == counted["plain"] and counted["plain"]["total"] > 30
    plain = counted["plain"]
    assert figures["upper_bound"] == at_most(plain["hits"], plain["total"], confidence=0.95).bound
    near = stored["false_blocks"]["maths near misses"]["plain"]
    assert figures["harmless"]["near misses"] == near and figures["harmless"]["everyday prompts"]["total"] > 0
    kinds = {"plain", "system", "second-turn", "deep", "buried", "prefill", "insisting"}
    assert figures["kinds"].keys() == kinds and all(figures["kinds"][kind]["total"] for kind in ("system", "prefill"))
    total, of_forms = (sum(each["total"] for each in figures[name].values()) for name in ("kinds", "forms"))
    assert figures["forms"].keys() == set(FORMS) and of_forms == total
    assert figures["left_out"] == counted["plain"]["total"] * len(kinds) - total > 0 and figures["compared"] > 100
    assert figures["otherwise"] == []


def test_the_table_has_the_same_figures(maths: Path) -> None:
    done = attacked(maths, "--quiet")
    assert done.exit_code == 0 and "maths: refused" in done.stdout
    for name, each in results(maths)["found"]["kinds"].items():
        line = next(line for line in done.stdout.splitlines() if f"│ {name} " in line)
        assert re.search(rf"│ +{each['hits']} │ +{each['total']} │", line), line


@pytest.mark.parametrize(("promise", "kept"), [(0.1, True), (0.9999, False)])
def test_the_promise(copied: Path, promise: float, kept: bool) -> None:
    edit(copied / SUMMARY, lambda summary: key_space(summary)["alpha"].update(promise=promise))
    remake_hashes(copied)
    found = results(copied)
    assert found["attack: promise"]["ok"] is kept and found["attack: as exported"]["ok"]
    plain, bound = found["found"]["kinds"]["plain"], found["found"]["upper_bound"]
    assert found["attack: promise"]["detail"] == (
        f"maths: {plain['hits']} of {plain['total']} plain prompts are refused, so at most {bound:.1%} of all (95 % "
        f"confidence); at least {promise:.1%} are promised"
    )


def test_nothing_is_promised_of_packaged_prompts_beside_others(copied: Path) -> None:
    def of_another_source(prompts: dict[str, Any]) -> None:
        prompts["maths"]["forget.report"][0]["source"] = "sums.jsonl"

    edit(copied / PROMPTS, of_another_source)
    remake_hashes(copied)
    found = results(copied)
    assert found["attack: promise"]["ok"] is None and found["found"]["promise"] is None
    total = key_space(json.loads((copied / SUMMARY).read_text()))["blocked"]["maths"]["plain"]["total"]
    assert found["found"]["kinds"]["plain"]["total"] == total - 1


def test_prompts_that_are_decided_otherwise(copied: Path) -> None:
    statistics = load_file(copied / STATISTICS)
    threshold = key_space(json.loads((copied / SUMMARY).read_text()))["alpha"]["value"]
    records = json.loads((copied / PROMPTS).read_text())["maths"]["forget.report"]
    scores = statistics["maths.scores.forget.report"]
    far, near = [row for row, each in enumerate(records) if each["format"] == "plain" and scores[row] < threshold][:2]
    scores[near] = threshold + 1e-6
    put(copied / STATISTICS, save(statistics))
    remake_hashes(copied)
    # Within rounding of the threshold: listed, not counted.
    found = results(copied)
    assert found["attack: as exported"]["ok"] and [each["close"] for each in found["found"]["otherwise"]] == [True]
    assert f"but by rounding maths row {records[near]['row']} (plain)" in found["attack: as exported"]["detail"]
    scores[far] = threshold + 0.1
    put(copied / STATISTICS, save(statistics))
    remake_hashes(copied)
    found = results(copied)
    said = f"maths row {records[far]['row']} (plain) is refused, which it was not at the export"
    assert found["attack: as exported"]["ok"] is False and found["attack: as exported"]["detail"] == said
    assert sorted(each["close"] for each in found["found"]["otherwise"]) == [False, True]


def test_packaged_prompts_have_changed_since(maths: Path) -> None:
    def changed(names: Iterable[str]) -> dict[str, str]:
        return packaged_sha256(names) | {"skills/maths.jsonl": ""}

    with (
        mock.patch("exporter.verification.attack.packaged_sha256", changed),
        pytest.raises(BadInput, match=r"not as the export read them \(sha256\): skills/maths.jsonl; unskill 0"),
    ):
        checks(maths, attack=True)


def test_nothing_is_asked_where_a_file_is_damaged(copied: Path) -> None:
    put(copied / SUMMARY, b"{}")
    done = attacked(copied, "--json", "--quiet")
    found = json.loads(done.stdout)
    assert done.exit_code == 1 and found["attack"] == []
    assert all(each["ok"] is None for each in found["checks"] if each["name"].startswith("attack"))


def test_without_a_packaged_skill(
    tiny: Callable[..., Exported], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["unskill", "verify", str(tiny("llama").checkpoint), "--attack", "--quiet"])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert end.value.code == 2 and not out and len(err.splitlines()) == 1
    assert "refuses no packaged skill" in err and "--skill NAME" in err


def test_without_the_model() -> None:
    with pytest.raises(BadInput, match="--attack: its prompts are asked of the model"):
        VerifySettings("out", model=False, attack=True)
