"""Checkpoints on other releases of transformers, in environments without unskill (make matrix)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from packaging.version import Version

from exporter.models.families import FAMILIES
from tests.tiny import FORMS, MIXTURES, Exported

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
MATRIX = Path(os.environ.get("UNSKILL_MATRIX") or ROOT / "build" / "matrix")
RELEASES = re.search(r"^VERSIONS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
# make evidence runs all others too.
WITH_NEURONS = [(release, "na+ksd") for release in (RELEASES[0], RELEASES[-1])]


def interpreter(release: str) -> Path:
    python = MATRIX / f"tf-{release}" / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"no environment with transformers {release} in {MATRIX}: make matrix")
    return python


def has(release: str, family: str) -> bool:
    return Version(release) >= Version(FAMILIES[family].since)


@pytest.mark.parametrize(
    "family",
    [pytest.param(each, marks=() if each in (*FORMS, *MIXTURES) else pytest.mark.evidence) for each in FAMILIES],
)
@pytest.mark.parametrize("release", RELEASES)
def test_tiny(release: str, family: str, tiny: Callable[..., Exported], check: Callable[..., dict[str, str]]) -> None:
    python = interpreter(release)
    if not has(release, family):
        pytest.skip(f"transformers {release} has no {family}, or not as newer ones have it")
    check(tiny(family), python)


@pytest.mark.parametrize("family", FORMS)
@pytest.mark.parametrize(
    ("release", "method"),
    [
        pytest.param(*each, marks=() if each in WITH_NEURONS else pytest.mark.evidence)
        for each in product(RELEASES, ("na", "na+ksd"))
    ],
)
def test_tiny_with_neurons(
    release: str, family: str, method: str, tiny: Callable[..., Exported], check: Callable[..., dict[str, str]]
) -> None:
    python = interpreter(release)
    if not has(release, family):
        pytest.skip(f"transformers {release} has no {family}, or not as newer ones have it")
    # Compiling takes a minute each, and the runtime is the same in all of them.
    check(tiny(family, method), python, skip="" if family == "llama" else "compiled_forward,adjusted_compiled")


@pytest.mark.parametrize("release", RELEASES)
def test_tiny_pruned(release: str, tiny: Callable[..., Exported], check: Callable[..., dict[str, str]]) -> None:
    check(tiny("llama", "sp"), interpreter(release))


@pytest.mark.real
@pytest.mark.evidence
@pytest.mark.parametrize("release", RELEASES)
def test_real(release: str, real_export: Exported, check: Callable[..., dict[str, str]]) -> None:
    check(real_export, interpreter(release), threads=None)


LOAD = """
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
"""


@pytest.mark.parametrize("release", RELEASES)
def test_older_than_the_family(release: str, tiny: Callable[..., Exported], tmp_path: Path) -> None:
    python = interpreter(release)
    family = next((family for family in FAMILIES if not has(release, family)), None)
    if family is None:
        pytest.skip(f"transformers {release} has all families")
    done = subprocess.run(
        [str(python), "-I", "-c", LOAD, str(tiny(family).checkpoint)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path)},
    )
    assert done.returncode == 1
    wanted = f"This checkpoint needs transformers {FAMILIES[family].since} or newer, found {release}"
    assert wanted in done.stderr.strip().splitlines()[-1]
