"""The experiments of examples/paper, each by its command on a tiny model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.paper.__main__ import entry
from examples.paper.experiment import read_experiment
from tests.tiny import FORGET, RETAIN, one_thread, tiny_model, write_prompts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and the sources that the recipes here name."""
    folder = tmp_path_factory.mktemp("paper")
    tiny_model(folder / "tiny", chat=False, max_position_embeddings=4096)
    write_prompts(folder / "forget.jsonl", FORGET)
    write_prompts(folder / "retain.jsonl", RETAIN)
    return folder


def run(place: Path, recipe: str, *flags: str) -> int:
    (place / "recipe.toml").write_text(f'model = "{place / "tiny"}"\n{recipe}', encoding="utf-8")
    with one_thread():
        return entry([str(place / "recipe.toml"), "--data", str(place), "--out", str(place / "out"), *flags])


def results(place: Path, recipe: str, *flags: str) -> dict[str, Any]:
    assert run(place, recipe, *flags) == 0
    return json.loads((place / "out" / "results.json").read_text(encoding="utf-8"))


MEMBERSHIP = """
experiment = "membership"
title = "tiny"
fit = 30
calibrate = 20
test = 10

[skills]
one = "forget.jsonl,column=prompt"
two = "retain.jsonl,column=prompt"
"""


def test_membership_fills_its_matrices(place: Path) -> None:
    found = results(place, MEMBERSHIP)["results"]
    for key in ("best", "last"):
        cells = {(cell["prompts"], cell["by"]): cell for cell in found[key]["cells"]}
        assert set(cells) == {(prompts, by) for prompts in ("one", "two") for by in ("one", "two")}
        assert all(cell["total"] == 10 for cell in cells.values())
        diagonal = [cells[name, name]["hits"] / 10 for name in ("one", "two")]
        assert found[key]["diagonal"] == pytest.approx(sum(diagonal) / 2)
    assert (place / "out" / "matrix-best.png").stat().st_size > 1000
    assert "Mean of the diagonal" in (place / "out" / "tables.md").read_text(encoding="utf-8")


def test_an_experiment_is_the_same_twice(place: Path) -> None:
    assert results(place, MEMBERSHIP) == results(place, MEMBERSHIP)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (('"membership"', '"magic"'), "experiment = 'magic' is none of"),
        (("fit = 30", "fits = 30"), "fits: Extra inputs are not permitted"),
        (("fit = 30", 'fit = "many"'), "fit: Input should be a valid integer"),
        (("fit = 30", "fit = 300"), "skills.one: "),
        (("forget.jsonl", "nothing.jsonl"), "skills.one"),
    ],
)
def test_bad_recipes_are_one_line(
    place: Path, change: tuple[str, str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(place, MEMBERSHIP.replace(*change)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and expected in line


def test_the_command_as_the_readme_has_it(place: Path) -> None:
    (place / "recipe.toml").write_text("experiment = 1", encoding="utf-8")
    command = [sys.executable, "-m", "examples.paper", str(place / "recipe.toml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_ablation_measures_every_method_at_every_beta(place: Path) -> None:
    write_texts(place / "texts.jsonl", FORGET, RETAIN)
    recipe = """
experiment = "ablation"
title = "tiny"
forget = ["texts.jsonl,column=prompt,answer=answer"]
retain = ["retain.jsonl,column=prompt"]
everyday = false
forget_test = "texts.jsonl,column=prompt,answer=answer"
limit = 8
scores = ["signed-mean", "effect-size"]
betas = [1, 20]
[others]
letters = "retain.jsonl,column=prompt"
"""
    found = results(place, recipe)["results"]
    trials = {(trial["series"], trial["beta"]): trial for trial in found["trials"]}
    assert len(trials) == 4 * 2
    for beta in (1, 20):
        assert trials["Neuron Adjust, effect-size", beta]["neurons"] == 3 * 64 * beta // 100
        for trial in (each for (_, at), each in trials.items() if at == beta):
            assert trial["texts"]["forget"]["dropped"]["total"] == 8
            assert trial["texts"]["letters"]["dropped"]["total"] == 0
    pruned = trials["Selective Pruning, magnitude-ratio", 20]["texts"]
    assert pruned["forget"]["rise"] != trials["Selective Pruning, magnitude-ratio", 1]["texts"]["forget"]["rise"]
    assert (place / "out" / "beta-1.png").is_file()


def write_texts(path: Path, prompts: list[str], answers: list[str]) -> None:
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_head_to_head_tunes_exports_and_judges(place: Path) -> None:
    write_texts(place / "texts.jsonl", FORGET, RETAIN)
    items = [{"subject": "sums", "question": f"{n}?", "choices": ["1", "2"], "answer": n % 2} for n in range(8)]
    (place / "mmlu.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    recipe = """
experiment = "head_to_head"
title = "tiny"
forget = ["texts.jsonl,column=prompt,answer=answer"]
retain = ["retain.jsonl,column=prompt"]
everyday = false
forget_test = "texts.jsonl,column=prompt,answer=answer"
choice = "mmlu.jsonl"
limit = 12
target = 0.7
methods = ["ksd", "na", "sp"]
betas = [1, 60]
[others]
letters = "retain.jsonl,column=prompt"
"""
    first = results(place, recipe)
    found = {row["method"]: row for row in first["results"]["methods"]}
    assert list(found) == ["Key Space Detection", "Neuron Adjust", "Selective Pruning"]
    ksd, pruned = ({task["task"]: task for task in found[name]["tasks"]} for name in list(found)[::2])
    assert ksd["text"]["difference"]["ratio"] == 1 and ksd["choice"]["difference"]["p_value"] == 1
    assert pruned["forget"]["edited"]["refused"]["all"]["hits"] == 0
    # What evaluate finds in the written checkpoint agrees with what beta was tuned by, as far as anything was lost.
    trials = {trial["beta"]: trial["lost"] for trial in found["Selective Pruning"]["tuned"]["trials"]}
    assert set(trials) >= {1.0, 60.0} and max(trials.values()) > 0
    assert (place / "out" / "timings.md").is_file()
    drawn = {(row["prompts"], row["by"]): row["hits"] for row in first["figures"][0]["rows"]}
    assert drawn["forget: refused", "Key Space Detection"] == ksd["forget"]["edited"]["refused"]["all"]["hits"]
    texts = [task for task in found["Selective Pruning"]["tasks"] if task["task"] == "text"]
    assert drawn["forget: lost", "Selective Pruning"] == texts[0]["difference"]["dropped"]["hits"]
    assert drawn["MMLU: no longer right", "Key Space Detection"] == 0
    assert (place / "out" / "methods.png").is_file()
    # What is kept of a method is not made again, and another one is measured beside it.
    (place / "out" / "ksd" / "kept").touch()
    more = results(place, recipe.replace('"sp"]', '"sp", "official"]'))["results"]["methods"]
    assert more[:3] == first["results"]["methods"] and more[3]["method"] == "the authors' code"
    assert (place / "out" / "ksd" / "kept").is_file()
    shutil.rmtree(place / "out")
    assert results(place, recipe) == first


@pytest.mark.parametrize(
    "recipe",
    sorted((ROOT / "examples" / "paper" / "recipes").rglob("*.toml")),
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_every_recipe_is_one(recipe: Path) -> None:
    run, settings = read_experiment(recipe, Path(), Path("out"), {})
    assert callable(run) and settings.title and settings.model
