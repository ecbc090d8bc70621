"""The wheel holds the packages and their data, nothing else, and works where there is no repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from exporter.common.version import __version__
from exporter.models.families import FAMILIES
from exporter.prompts.packaged_skills import packaged_skills

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("exporter", "custom_modeling")
NO_SOURCE = shutil.ignore_patterns("__pycache__", "*.pyc", ".mypy_cache")
IMPORT_SECONDS = 0.1
"""Of CPU time, beyond a bare interpreter's."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as a release is built from it; a build leaves files behind."""
    folder = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=NO_SOURCE)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def built(source: Path) -> Path:
    """A folder with the sdist and, built from it, the wheel."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs are of an environment with the wheel, which sees the packages of this one: a .pth file adds
    folders, but not what their own .pth files name, such as an editable unskill."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    packages = folder / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (packages / "tested.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return python.parent


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that sees nothing of the repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_the_wheel_holds_the_packages_whole_and_nothing_else(source: Path, wheel: Path) -> None:
    expected = {
        path.relative_to(source).as_posix()
        for name in PACKAGES
        for path in (source / name).rglob("*")
        if path.is_file()
    }
    with ZipFile(wheel) as opened:
        names = set(opened.namelist())
    information = {name for name in names if name.startswith(f"unskill-{__version__}.dist-info/")}
    assert names - information == expected


def test_the_sdist_has_no_part_of_the_tests(built: Path) -> None:
    """Without what all of them share, they would be of no use."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml"} <= names
    assert [name for name in names if name.split("/")[0] == "tests"] == []


def test_the_installed_package_is_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import exporter, custom_modeling; print(exporter.__file__, custom_modeling.__file__, sep='\\n')"
    for place in run(installed / "python", "-c", code, cwd=tmp_path).splitlines():
        assert Path(place).is_relative_to(installed.parent)


def test_the_commands_work_away_from_the_repository(installed: Path, tmp_path: Path) -> None:
    unskill = installed / "unskill"
    assert run(unskill, "--help", cwd=tmp_path).startswith("Usage: unskill ")
    assert run(unskill, "--version", cwd=tmp_path) == f"unskill, version {__version__}\n"
    table = run(unskill, "skills", cwd=tmp_path)
    assert [name for name in packaged_skills() if name not in table] == []
    families = json.loads(run(unskill, "families", "--json", cwd=tmp_path))["families"]
    assert {each["family"] for each in families} == set(FAMILIES)


def test_importing_it_takes_no_time(installed: Path, tmp_path: Path) -> None:
    """The shortest of three, as the first may read from the disk."""
    code = "import time; begun = time.process_time(); import exporter; print(time.process_time() - begun)"
    assert min(float(run(installed / "python", "-c", code, cwd=tmp_path)) for _ in range(3)) < IMPORT_SECONDS
