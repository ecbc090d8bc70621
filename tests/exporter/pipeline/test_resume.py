"""An export that was stopped goes on with what it had computed, and gives the same bytes; what is said before it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner, Result

from exporter.cli.main import cli
from exporter.common.cache import FOLDER, cached_files
from exporter.methods.key_space.region_probe import expected
from exporter.models.kept import Kept
from exporter.models.prober import Prober
from exporter.pipeline import prepared
from exporter.pipeline import run as module
from tests.tiny import FORGET, RETAIN, one_thread, tiny_model, write_prompts

QUICK = "--effort", "quick"


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base and prompts, in a folder with a cache of its own."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    tiny_model(tmp_path / "base", intermediate_size=64)
    write_prompts(tmp_path / "forget.jsonl", FORGET[:24])
    write_prompts(tmp_path / "retain.jsonl", RETAIN[:60])
    return tmp_path


def arguments(folder: Path, out: str, *flags: str) -> list[str]:
    files = ["--forget", f"{folder}/forget.jsonl", "--retain", f"{folder}/retain.jsonl"]
    plain = ["--no-everyday", "--no-figures", "--force", "--threads", "1", "--batch-size", "16"]
    return ["export", f"{folder}/base", f"{folder}/{out}", *files, *plain, *(flags or QUICK)]


def exported(folder: Path, out: str, *flags: str) -> Result:
    with one_thread():
        return CliRunner().invoke(cli, arguments(folder, out, *flags))


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those that say when and where."""
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def kept_of(stop: Callable[[Kept], bool], seen: list[Kept]) -> Callable[..., dict[str, object]]:
    """`Kept.of`, which is interrupted where `stop` says so."""
    of = Kept.of

    def interrupted(self: Kept, *arguments: object) -> dict[str, object]:
        seen.append(self)
        if stop(self):
            raise KeyboardInterrupt
        return of(self, *arguments)  # type: ignore[arg-type, return-value]

    return interrupted


@pytest.mark.parametrize("share", [0.4, 0.95])
def test_an_export_that_was_stopped_goes_on(share: float, sources: Path) -> None:
    seen: list[Kept] = []
    with mock.patch.object(Kept, "of", kept_of(lambda kept: False, seen)):
        assert exported(sources, "whole").exit_code == 0
    batches = seen[-1].made
    assert batches > 10 and seen[-1].found < batches  # some batches are the same
    assert CliRunner().invoke(cli, ["cache", "rm"]).exit_code == 0 and not cached_files(sources / "cache")
    stopped: list[Kept] = []
    at = round(share * batches)
    with mock.patch.object(Kept, "of", kept_of(lambda kept: kept.made >= at, stopped)):
        assert isinstance(exported(sources, "again").exception, KeyboardInterrupt | SystemExit)
    assert not (sources / "again").exists() and len(cached_files(sources / "cache")) == at
    again: list[Kept] = []
    with mock.patch.object(Kept, "of", kept_of(lambda kept: False, again)):
        assert exported(sources, "again").exit_code == 0
    assert again[-1].made == batches - at
    assert contents(sources / "again") == contents(sources / "whole")


def test_other_budgets_compute_nothing_anew_and_no_cache_is_the_same(sources: Path) -> None:
    made: list[Kept] = []
    with mock.patch.object(Kept, "of", kept_of(lambda kept: False, made)):
        assert exported(sources, "one").exit_code == 0
        assert exported(sources, "two", *QUICK, "--max-false-block", "0.5", "--max-near-miss", "0.3").exit_code == 0
        first, second = dict.fromkeys(map(id, made)).keys()
        assert (
            next(kept for kept in made if id(kept) == second).made
            < 0.2 * next(kept for kept in made if id(kept) == first).made
        )
        count = len(made)
        assert exported(sources, "three", *QUICK, "--no-cache").exit_code == 0
        assert len(made) == count
    assert contents(sources / "three") == contents(sources / "one") != contents(sources / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", [pytest.param(each, marks=pytest.mark.evidence if each % 4 else ()) for each in range(12)]
)
def test_an_export_that_was_killed_goes_on(moment: int, sources: Path) -> None:
    command = [sys.executable, "-m", "exporter", *arguments(sources, "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun = time.monotonic()
    subprocess.run([*command, "--no-cache"], check=True, env=environment, capture_output=True)
    took = time.monotonic() - begun
    whole = contents(sources / "out")
    with subprocess.Popen([*command, "--overwrite"], env=environment, stderr=subprocess.DEVNULL) as process:
        time.sleep(took * (moment + 1) / 13)
        process.send_signal(signal.SIGKILL)
    subprocess.run([*command, "--overwrite"], check=True, env=environment, capture_output=True)
    assert contents(sources / "out") == whole


def test_what_is_expected_is_what_is_run(sources: Path) -> None:
    """The time that is left follows from it; the layer is not known before."""
    planned: list[tuple[str, float]] = []
    run: dict[str, float] = {}

    def spied(*given: object) -> list[tuple[str, float]]:
        planned.extend(expected(*given))  # type: ignore[arg-type]
        return planned[-len(planned) :]

    batches = Prober.batches

    def counted(self: Prober, queries: object, run_: object, what: str, *rest: object, **named: object) -> object:
        stage = self.progress.stage
        with mock.patch.object(
            self.progress, "stage", lambda name, work, text: (run.update({name: work}), stage(name, work, text))[1]
        ):
            yield from batches(self, queries, run_, what, *rest, **named)  # type: ignore[arg-type]

    with mock.patch.object(module, "expected", spied), mock.patch.object(Prober, "batches", counted):
        assert exported(sources, "out", *QUICK, "--layer", "1").exit_code == 0
    exact = {name: work for name, work in planned if "inside answers" not in name}
    assert {name: run[name] for name in exact} == pytest.approx(exact)
    (inside,) = [work for name, work in planned if "inside answers" in name]
    assert run["fit part: inside answers"] <= inside


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(sources: Path) -> None:
    before = contents(sources)
    found = exported(sources, "out", *QUICK, "--dry-run", "--quiet")
    assert found.exit_code == 0 and contents(sources) == before
    first, skill, out, took, *rest = found.stdout.splitlines()
    assert first.startswith("base: llama, 0.") and "float32, cpu" in first
    assert "to fit: " in skill and "to report on: " in skill and out.startswith(f"OUT: {sources}/out, ")
    assert took.startswith("about 0:0") and f"{FORGET[0].split()[0]}" in found.stdout
    as_json = json.loads(exported(sources, "out", *QUICK, "--dry-run", "--quiet", "--json").stdout)
    assert as_json["tokens"] > 1000 and as_json["seconds"] > 0 and max(map(len, as_json["examples"].values())) == 3
    assert as_json["lines"] == [first, skill, out] and rest


def test_a_cache_that_cannot_be_cleared_is_no_end(sources: Path) -> None:
    error = PermissionError(13, "Permission denied", "old.safetensors")
    with mock.patch.object(prepared, "make_room", side_effect=error):
        found = exported(sources, "out", *QUICK, "--layer", "1")
    assert found.exit_code == 0 and "old.safetensors stays (Permission denied)" in found.stderr


def test_a_dry_run_of_hypercubes(sources: Path) -> None:
    found = exported(
        sources, "out", "--dry-run", "--region", "hypercube", "--layer", "0", "--alpha", "5", "--formats", "plain"
    )
    assert found.exit_code == 0 and "forget: " in found.stdout and not (sources / "out").exists()


def test_a_dry_run_has_no_prompts_of_a_description(sources: Path) -> None:
    found = CliRunner().invoke(
        cli, ["export", f"{sources}/base", f"{sources}/out", "--describe", "sums in words", "--dry-run"]
    )
    assert found.exception is not None and "--read-prompts" in str(found.exception)
