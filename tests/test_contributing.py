"""CONTRIBUTING's layout and the names in it are those of the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def layout() -> tuple[set[str], set[str]]:
    """The folders and the modules that the tree under "Layout" names, relative to exporter/."""
    (tree,) = re.findall(r"^```\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    folders, modules, parent = set(), set(), ""
    for line in tree.splitlines():
        names = re.split(r"\s{2,}|(?<=\.py) (?=[a-z])", line.strip())[0]
        within = parent if line.startswith(" ") else ""
        for name in names.split(", "):
            if name.endswith("/"):
                folders.add(within + name.rstrip("/"))
            else:
                modules.add(within + name)
        if not line.startswith(" "):
            parent = names
    return folders, modules


def test_every_package_is_named_and_exists() -> None:
    exporter = ROOT / "exporter"
    there = {path.parent.relative_to(exporter).as_posix() for path in exporter.rglob("__init__.py")} - {"."}
    folders, modules = layout()
    assert there <= folders
    assert [name for name in folders if not (exporter / name).is_dir()] == []
    assert [name for name in modules if not (exporter / name).is_file()] == []


def test_the_order_is_the_one_that_is_linted() -> None:
    """Top to bottom as in the layers of import-linter."""
    (layers,) = re.findall(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    (tree,) = re.findall(r"^```\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert re.findall(r"[a-z]+", layers) == re.findall(r"^([a-z]+)/", tree, re.MULTILINE)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:exporter|tests|examples)/[\w./-]+)`", TEXT))))
def test_named_paths_exist(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z0-9. -]+)`", TEXT))))
def test_named_targets_exist(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{re.escape(each)}:", makefile, re.MULTILINE) for each in target.split())
