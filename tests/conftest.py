"""Fixtures: tiny checkpoints of every family, the real base model, and one real export. All made once a session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
# The checks are scripts for interpreters that know nothing of this project, but their parts can be used here too.
sys.path.append(str(TESTS / "checks"))

from exporter.common.cache import FOLDER  # noqa: E402
from exporter.models.loading import make_first_calls  # noqa: E402
from exporter.pipeline.run import check_written, export  # noqa: E402
from tests.real import FEW_PROMPTS, GEMMA, GEMMA_TEMPLATE, SMOLLM2, SOME_PROMPTS, WHEELS, export_real  # noqa: E402
from tests.several import several  # noqa: E402, F401
from tests.tiny import (  # noqa: E402
    ALPHA,
    FORGET,
    LAYER,
    RETAIN,
    TEMPLATE,
    Exported,
    one_skill,
    one_thread,
    tiny_export,
    tiny_model,
    write_prompts,
)

# What makes a model or starts a process, as fixtures and as names in a module.
MODEL_FIXTURES = {"tiny", "templated", "several", "real", "real_export", "gemma_export", "check"}
MODEL_NAMES = {"tiny_model", "tiny_export", "Exported", "CliRunner", "subprocess", "Popen"}

# Folders whose tests share what takes long to make; all other files may each run in a process of their own.
PACKAGES = TESTS / "exporter"
TOGETHER = {PACKAGES / "reporting": "several", PACKAGES / "checkpoint" / "inspection": "several"}
TOGETHER |= {PACKAGES / "verification": "verification"}


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the quick tests, and let files that take longest come first: in several processes, one of them would
    otherwise end long after all."""
    marks: dict[Path, set[str]] = {}
    for item in items:
        if is_quick(item):
            item.add_marker("quick")
        item.add_marker(pytest.mark.xdist_group(TOGETHER.get(item.path.parent, str(item.path))))
        marks.setdefault(item.path, set()).update(mark.name for mark in item.iter_markers())
    items.sort(key=lambda item: [name not in marks[item.path] for name in ("real", "slow")])


def is_quick(item: pytest.Item) -> bool:
    """No marker says otherwise, and neither the test's module nor one of its fixtures makes a model or a process."""
    assert isinstance(item, pytest.Function)
    fixtures = [each for found in item._fixtureinfo.name2fixturedefs.values() for each in found]
    scopes = [vars(item.module), *(each.func.__globals__ for each in fixtures)]
    return (
        item.get_closest_marker("real") is None
        and item.get_closest_marker("slow") is None
        and MODEL_FIXTURES.isdisjoint(item.fixturenames)
        and all(MODEL_NAMES.isdisjoint(scope) for scope in scopes if scope is not globals())
    )


@pytest.fixture(scope="session", autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Modeling code that transformers copies out of checkpoints goes to a place of its own."""
    from transformers import dynamic_module_utils

    folder = str(tmp_path_factory.mktemp("modules"))
    os.environ["HF_MODULES_CACHE"] = folder  # for the processes that tests start
    dynamic_module_utils.HF_MODULES_CACHE = folder


@pytest.fixture(scope="session", autouse=True)
def nothing_kept() -> None:
    """Exports compute everything, also those of the processes that tests start."""
    os.environ[FOLDER] = ""


@pytest.fixture(scope="session", autouse=True)
def first_calls() -> None:
    """Tests compare forwards bit by bit, of models that they load themselves too."""
    make_first_calls()


@pytest.fixture(scope="session", autouse=True)
def unverified() -> Iterator[None]:
    """Hundreds of tiny exports in the tests' own process are not each verified by another one, which would take
    seconds; `verified` does, and so do all commands that tests start."""
    with mock.patch("exporter.pipeline.run.check_written"):
        yield


@pytest.fixture
def verified() -> Iterator[None]:
    """Exports are verified before they are put in place, as for a user."""
    with mock.patch("exporter.pipeline.run.check_written", check_written):
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """tiny(family, method="ksd") is an exported tiny model of it."""
    made: dict[tuple[str, str], Exported] = {}

    def get(family: str, method: str = "ksd") -> Exported:
        if (family, method) not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{method}")
            made[family, method] = tiny_export(folder, family, method=method)
        return made[family, method]

    return get


@pytest.fixture(scope="session")
def templated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose prompts were formatted by a template; asked otherwise, forget prompts are not refused."""
    folder = tmp_path_factory.mktemp("templated")
    forget, retain = (
        f"{write_prompts(folder / f'{name}.jsonl', texts)},column=prompt"
        for name, texts in (("forget", FORGET), ("retain", RETAIN))
    )
    settings = {"prompt_template": TEMPLATE, "layer": LAYER["llama"], "alpha": ALPHA, "everyday": False}
    base = tiny_model(folder / "base", chat=False)
    with one_thread():
        export(one_skill(base, folder / "out", forget, retain, force=True, quiet=True, **settings), lambda text: None)
    return folder / "out"


@pytest.fixture(scope="session")
def real() -> Path:
    """SmolLM2-135M-Instruct."""
    return made(SMOLLM2, "make base")


def made(path: Path, how: str) -> Path:
    """A model or wheel that make puts there."""
    if not (path / "config.json" if path.suffix != ".whl" else path).is_file():
        pytest.skip(f"{path.relative_to(ROOT)} is not there: {how}")
    return path


@pytest.fixture(scope="session")
def real_export(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """SmolLM2 without the maths problems of reasoning-gym; its folder also holds summary.json and held-out prompts."""
    for wheel in WHEELS:
        made(wheel, "make test")
    return export_real(real, tmp_path_factory.mktemp("real"), 60, 12, *FEW_PROMPTS)


@pytest.fixture(scope="session")
def gemma_export(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Gemma-3-270m likewise."""
    for wheel in WHEELS:
        made(wheel, "make test")
    folder = tmp_path_factory.mktemp("gemma")
    return export_real(made(GEMMA, "make gemma"), folder, 150, 40, *SOME_PROMPTS, template=GEMMA_TEMPLATE)


@pytest.fixture(scope="session")
def check(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """check(exported, python) runs the checks under that interpreter, fails where one of them does, returns them."""

    def run(
        exported: Exported,
        python: Path | str = sys.executable,
        threads: int | None = 1,
        skip: str = "",
        only: str = "",
    ) -> dict[str, str]:
        command = [str(python), "-I", str(TESTS / "checks" / "checkpoint_checks.py")]
        command += [str(path) for path in (exported.base, exported.checkpoint, exported.prompts)]
        command += ["--skip", skip] if skip else []
        command += ["--only", only] if only else []
        environment = {
            **os.environ,
            "HF_MODULES_CACHE": str(tmp_path_factory.mktemp("modules")),
            "HF_HUB_OFFLINE": "1",
        }
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=exported.checkpoint, env=environment
        )
        try:
            results: dict[str, str] = json.loads(done.stdout)
        except ValueError:
            pytest.fail(f"no results, exit {done.returncode}:\n{done.stderr[-4000:]}")
        failed = {name: result for name, result in results.items() if result.startswith("failed")}
        assert not failed, f"{json.dumps(failed, indent=2)}\n{done.stderr[-4000:]}"
        assert done.returncode == 0
        return results

    return run
