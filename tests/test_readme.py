"""The README's commands are run, on tiny stand-ins for the model and the prompts it names."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import FORGET, RETAIN, tiny_model, write_prompts

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL, OUT = "HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-no-maths"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    text = "\n".join(blocks("console")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]


def test_make_targets_exist() -> None:
    targets = {command[1] for command in commands() if command[0] == "make"}
    assert {"demo", "test"} <= targets
    for target in sorted(targets):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_export_command_and_the_python_that_follows(tmp_path: Path) -> None:
    (command,) = (command for command in commands() if command[0] == "unskill")
    base = tiny_model(tmp_path / "tiny", max_position_embeddings=4096)  # packaged formats are long byte by byte
    write_prompts(tmp_path / "maths.jsonl", FORGET, "question")
    write_prompts(tmp_path / "code.jsonl", RETAIN, "text")
    # A tiny random model cannot keep everyday prompts apart, which is no matter of the command.
    arguments = [str(base) if word == MODEL else word for word in command[1:]]
    done = subprocess.run(
        [sys.executable, "-m", "exporter", *arguments, "--no-everyday", "--force", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / OUT / "config.json").is_file()
    (code,) = blocks("python")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md", "examples/quickstart.py"])
def test_named_files_exist(name: str) -> None:
    assert name in README
    assert (ROOT / name).is_file()
