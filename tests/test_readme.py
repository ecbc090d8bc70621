"""The commands of README and docs/ are run, on tiny stand-ins for the model and the prompts that they name."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.cli.main import cli
from tests.tiny import FORGET, RETAIN, tiny_model

ROOT = Path(__file__).resolve().parent.parent
NAV = re.findall(r": ((?:README|docs/.*)\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
"""README and the pages of docs/ in their order: a command may need what those before it wrote."""
TEXT = "".join((ROOT / name).read_text(encoding="utf-8") for name in NAV)
SONGS = [text.replace("write a short letter to", "sing an old song for") for text in RETAIN]
SOURCES = {
    "maths": {"question": FORGET, "answer": [f"That makes {number}." for number in range(len(FORGET))]},
    "code": {"text": RETAIN, "code": [f"Dear {number}, thank you." for number in range(len(RETAIN))]},
    "german": {"text": SONGS},
    "french": {"text": [text.replace("sing", "hum") for text in SONGS]},
}
MODEL, OUT = "HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-no-maths"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    text = "\n".join(blocks("console")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]


def test_all_pages_are_read() -> None:
    assert NAV[0] == "README.md"
    assert sorted(NAV[1:]) == sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))


def test_make_targets_exist() -> None:
    targets = {command[1] for command in commands() if command[0] == "make"}
    assert {"demo", "test"} <= targets
    for target in sorted(targets):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
def test_the_commands_and_the_python_that_follows(tmp_path: Path) -> None:
    asked = [command for command in commands() if command[0] == "unskill"]
    assert {command[1] for command in asked} == set(cli.commands)
    assert any("--recipe" in command for command in asked)
    base = tiny_model(tmp_path / "tiny", max_position_embeddings=4096)  # packaged formats are long byte by byte
    for name, columns in SOURCES.items():
        rows = zip(*columns.values(), strict=True)
        lines = (json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    (recipe,) = blocks("toml")
    (tmp_path / "skills.toml").write_text(
        re.sub("everyday_without.*", "everyday = false", recipe.replace(MODEL, str(base)))
    )
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)}
    for command in asked:
        arguments = [str(base) if word == MODEL else word for word in command[1:]]
        # A tiny random model cannot keep everyday prompts apart, which is no matter of the command.
        more = {"export": ["--quiet", "--force", "--no-everyday"], "probe": ["--quiet", "--no-everyday"]}
        more |= {
            "build-ops": ["--no-cuda"],
            "chat": ["--max-new-tokens", "8"],
            "inspect": [],
            "skills": [],
            "families": [],
            "cache": [],
        }
        done = subprocess.run(
            [sys.executable, "-m", "exporter", *arguments, *more.get(command[1], ["--quiet"])],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, **environment, "UNSKILL_CACHE": str(tmp_path / "kept")},
        )
        if "--describe" in command:  # a random model writes no prompts
            assert done.returncode == 2 and "usable forget prompts in" in done.stderr, done.stderr
            continue
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (tmp_path / OUT / "config.json").is_file()
    assert (tmp_path / f"{OUT}-onnx" / "onnx" / "model.onnx").is_file()
    code = blocks("python")[0]  # README.md's comes first
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)


def test_the_sample_prompts_are_a_source() -> None:
    (lines,) = blocks("json")
    assert [list(json.loads(line)) for line in lines.splitlines()] == [["question"]] * 3


NAMED = sorted(set(re.findall(r"`((?:exporter|tests|examples)/[\w./-]+)`", TEXT)))


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md", *NAMED])
def test_named_files_exist(name: str) -> None:
    assert name in TEXT
    assert (ROOT / name).exists()


def test_named_files_are_found() -> None:
    assert {"examples/quickstart.py", "examples/recipe.toml", "examples/blocked.py"} <= set(NAMED)
