"""The lower bounds of pyproject.toml are releases that the tool is tested with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.tiny import FORGET, RETAIN, tiny_model, write_prompts

ROOT = Path(__file__).resolve().parent.parent
FLOOR = ROOT / "build" / "floor"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(path: Path) -> dict[str, Version]:
    found = re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in found}


TESTED = {**pins(ROOT / "constraints.txt"), "torch": Version("2.13.0"), **pins(ROOT / "tests" / "floor.txt")}


@pytest.mark.parametrize("text", PROJECT["dependencies"])
def test_every_floor_is_tested(text: str) -> None:
    """A bound is the oldest tested release, to its minor version at least."""
    asked = Requirement(text)
    (bound,) = asked.specifier
    tested = TESTED[canonicalize_name(asked.name)]
    assert bound.operator == ">=" and Version(bound.version) <= tested
    assert Version(bound.version).release[:2] == tested.release[:2]


def test_python_is_the_tested_one() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    assert "(3, 11)" in (ROOT / "Makefile").read_text()
    prefix = "Programming Language :: Python :: 3."
    assert [each for each in PROJECT["classifiers"] if each.startswith(prefix)] == [f"{prefix}11"]
    assert "(Python 3.11, Linux)" in (ROOT / "constraints.txt").read_text()
    for name in ("ci.yml", "release.yml"):
        jobs = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())["jobs"].values()
        steps = [step for job in jobs for step in job["steps"] if "setup-python" in step.get("uses", "")]
        assert [step["with"]["python-version"] for step in steps] == ["3.11"], name


@pytest.mark.slow
def test_an_export_with_the_oldest_releases(tmp_path: Path) -> None:
    """Neurons and a hypercube, and every check of `verify`."""
    if not (FLOOR / "transformers").is_dir():
        pytest.skip("build/floor is not there: make floor")
    tiny_model(tmp_path / "base")
    write_prompts(tmp_path / "forget.jsonl", FORGET)
    write_prompts(tmp_path / "retain.jsonl", RETAIN)
    environment = {**os.environ, "PYTHONPATH": f"{FLOOR}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    version = run("-c", "import transformers; print(transformers.__version__)")
    assert Version(version.strip()) == TESTED["transformers"]
    sources = [
        "--forget",
        "forget.jsonl",
        "--retain",
        "retain.jsonl",
        "--no-everyday",
        "--prompt-template",
        "{prompt}",
    ]
    run("-m", "exporter", "export", "base", "out", "--method", "na+ksd", "--force", "--no-figures", *sources)
    run("-m", "exporter", "verify", "out")
