"""An export's own recipe, in a fresh process and another folder: every file of the checkpoint is the same again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.checkpoint.reading import read_stored
from exporter.cli.main import cli
from exporter.models.headers import read_header
from tests.tiny import FORGET, FORGET_MORE, RETAIN, one_thread, tiny_model, write_prompts

pytestmark = pytest.mark.slow

THIRD = [text.replace("write a short letter to", "sing an old song for") for text in RETAIN]
PROMPTS = ("Answer in one line, please.", "You are a pirate.\nSay 'arr'.")

SEVERAL = """
model = "{model}"
everyday = false
prompt_template = "Q: {{prompt}}\\nA, \\"short\\":"

[[skill]]
name = "sums, \\"hard\\""
method = "na+ksd"
score = "effect-size"
layer = 1
forget = ["{top}/data/sums.jsonl,column=prompt,answer=more,limit=80", "more.jsonl"]
retain = ["{top}/letters.jsonl,template=@{top}/template.txt,answer=more", "{top}/two/letters.jsonl"]

[[skill]]
name = "songs"
forget = "songs.txt"
retain = "{top}/data/sums.jsonl,column=prompt"

[[skill]]
name = "letters"
method = "sp"
beta = 1.0
forget = "{top}/letters.jsonl,column=prompt"
retain = "{top}/data/sums.jsonl,column=prompt"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder called after somebody, with data in several places; the working directory is below it."""
    top = tmp_path / "somebody"
    work = top / "work"
    for folder in ("data", "two", "work/sub"):
        (top / folder).mkdir(parents=True)
    rows = [{"prompt": text, "more": f" That is {number}."} for number, text in enumerate(FORGET)]
    (top / "data" / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": text, "more": " Dear you."} for text in RETAIN]
    (top / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_prompts(top / "two" / "letters.jsonl", [text.replace("today", "tonight") for text in RETAIN[:40]])
    write_prompts(work / "more.jsonl", FORGET_MORE)
    (work / "songs.txt").write_text("\n".join(THIRD))
    (top / "template.txt").write_text('Say, "please":\n{prompt}\n')
    monkeypatch.chdir(work)
    return top


def export(*arguments: object) -> None:
    with one_thread():
        cli.main(["export", *map(str, arguments), "--force", "--quiet", "--json"], standalone_mode=False)


def again(out: Path, where: Path, *arguments: object, code: int = 0) -> str:
    """The recipe of OUT once more, into `again` in the folder `where`, which is made; returns stderr."""
    where.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "exporter", "export", "again", "--recipe", out / "reproduce" / "recipe.toml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        list(map(str, [*command, "--json", *arguments])), cwd=where, env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def files(out: Path) -> dict[str, str]:
    """sha256 of all files by name, as the checkpoint itself says."""
    return json.loads((out / "reproduce" / "hashes.json").read_text())


def tells_no_path(out: Path, top: Path) -> bool:
    """Whether no file holds a path from outside the working directory, which is below the folder `somebody`."""
    contents = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    return not any(name.encode() in content for content in contents for name in (str(top.parent), "somebody"))


def test_several_skills_from_several_sources(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_model(place / "models" / "base", chat=False)
    (place / "work" / "mine.toml").write_text(SEVERAL.format(model=base, top=place))
    out = place / "work" / "out"
    export("--recipe", "mine.toml", "out")
    assert tells_no_path(out, place)
    data = [argument for name in (".", "data", "two", "models", "work") for argument in ("--data", f"../{name}")]
    said = again(out, place / "elsewhere", *data, "--quiet")
    assert not said
    ours, theirs = files(out), files(place / "elsewhere" / "again")
    assert "figures/matrix.png" in ours and "model-00002-of-00002.safetensors" in ours
    assert ours == theirs
    # What report and onnx read of it is the settings of the export.
    recipe = read_stored(str(out)).recipe
    assert [skill["name"] for skill in recipe["skills"]] == ['sums, "hard"', "songs", "letters"]
    assert recipe["prompt_template"] == 'Q: {prompt}\nA, "short":' and recipe["force"] is True
    assert recipe["skills"][0]["sources"][2]["options"]["template"] == 'Say, "please":\n{prompt}'


def test_a_chat_model_with_system_prompts(place: Path) -> None:
    tiny_model(place / "work" / "sub" / "base", max_position_embeddings=1024)
    prompts = [argument for text in PROMPTS for argument in ("--system-prompt", text)]
    few = ("../data/sums.jsonl,column=prompt,limit=64", "../letters.jsonl,column=prompt,limit=20")
    sources = ("--forget", few[0], "--retain", few[1], "--no-everyday", "--layer", 1, "--alpha", 5)
    export("sub/base", "out", *sources, *prompts, "--batch-size", 7)
    out = place / "work" / "out"
    assert tells_no_path(out, place)
    assert not any(b"pirate" in path.read_bytes() for path in out.rglob("*") if path.is_file())
    recipe = (out / "reproduce" / "recipe.toml").read_text()
    assert 'model = "sub/base"' in recipe and "threads = 1" in recipe and "batch_size = 7" in recipe
    data = ("--data", "..", "--data", "../data", "--data", "../work", "--quiet")
    said = again(out, place / "elsewhere", *data, "--system-prompt", PROMPTS[0], code=2)
    assert "of 2 in the recipe's export, 1 missing here" in said
    again(out, place / "elsewhere", *data, *prompts[2:], *prompts[:2])
    ours, theirs = files(out), files(place / "elsewhere" / "again")
    # The model does not lie below the working directory there.
    assert {name for name in ours if ours[name] != theirs[name]} == {"reproduce/recipe.toml"}


def test_neurons_by_stored_statistics(place: Path) -> None:
    """Also: what differs ends in one line, and what is named on the command line may differ."""
    base = tiny_model(place / "work" / "base", chat=False)
    sources = ("--forget", "../data/sums.jsonl,answer=more", "--retain", "../letters.jsonl,answer=more")
    with one_thread():
        probe = ("probe", "base", "../found.safetensors", *sources, "--no-everyday", "--quiet")
        cli.main(list(probe), standalone_mode=False)
    asked = ("--no-everyday", "--method", "na", "--statistics", "../found.safetensors", "--threads", 2)
    export("base", "out", *sources, *asked)
    assert json.loads(Path("out/reproduce/versions.json").read_text())["threads"] == 2
    out = place / "work" / "out"
    assert 'statistics = "found.safetensors"' in (out / "reproduce" / "recipe.toml").read_text()
    data = ("--data", "..", "--data", "../data", "--data", "../work")
    again(out, place / "elsewhere", *data, "--quiet")
    assert files(out) == files(place / "elsewhere" / "again")

    versions = out / "reproduce" / "versions.json"
    versions.write_text(versions.read_text().replace('"torch": "', '"torch": "0.'))
    with (base / "config.json").open("a") as file:
        file.write("\n")
    assert "MODEL base: config.json is not as the recipe's" in again(out, place / "elsewhere", *data, code=2)
    command = (*data, "--overwrite")
    said = again(out, place / "elsewhere", "again", *command, code=2)  # MODEL OUT, and that model is none
    assert "unskill: error: MODEL" in said
    found = place / "found.safetensors"
    save_file(load_file(found), found, {**read_header(found).metadata, "note": "another file"})
    assert "--statistics: found.safetensors is not the file" in again(out, place / "elsewhere", *data, code=2)
    with (place / "data" / "sums.jsonl").open("a") as file:
        file.write("\n")
    assert "--forget sums.jsonl: is not the file that was meant" in again(out, place / "elsewhere", *data, code=2)
    changed = ("--forget", "../data/sums.jsonl,answer=more", "--retain", "../letters.jsonl,answer=more")
    said = with_model(out, place, *changed)
    assert "config.json is not as the recipe's, so the interventions will differ" in said
    assert f"torch 0.{torch.__version__} (here {torch.__version__})" in said


def with_model(out: Path, place: Path, *arguments: object) -> str:
    """The recipe with the model and the statistics named on the command line, which may then be others."""
    where = place / "elsewhere"
    recipe = out / "reproduce" / "recipe.toml"
    command = [sys.executable, "-m", "exporter", "export", "../work/base", "other", "--recipe", recipe, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    command += ["--statistics", "../found.safetensors", *arguments]
    done = subprocess.run(list(map(str, command)), cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and (where / "other" / "config.json").is_file(), done.stderr
    return done.stderr


def test_one_argument_beside_a_recipe(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is OUT where the recipe names the model; no OUT and --data without a recipe are one clear line."""
    tiny_model(place / "work" / "base", chat=False)
    (place / "work" / "mine.toml").write_text('model = "base"\nforget = "more.jsonl"\nretain = "songs.txt"\n')
    (place / "work" / "both.toml").write_text('model = "base"\nout = "out"\nforget = "more.jsonl"\n')
    errors: dict[str, Callable[[], None]] = {
        "OUT: give it on the command line or in a recipe: unskill export OUT --recipe FILE ...": lambda: export(
            "--recipe", "mine.toml"
        ),
        "--forget: 20 different prompts": lambda: export("out", "--recipe", "mine.toml"),
        "--data: says where to look for the files of a recipe": lambda: export("base", "out", "--data", "."),
        "--revision: is for models on the Hub, and MODEL base is a folder": lambda: export(
            "out", "--recipe", "mine.toml", "--revision", "main", "--forget", "../data/sums.jsonl,column=prompt"
        ),
        "--threads: 0 is not 1 or more": lambda: export("out", "--recipe", "mine.toml", "--threads", 0),
        "MODEL OUT: the recipe names both": lambda: export("other", "--recipe", "both.toml", "--overwrite"),
    }
    from exporter.common.errors import BadInput

    for message, run in errors.items():
        with pytest.raises(BadInput) as error:
            run()
        assert message in str(error.value)
