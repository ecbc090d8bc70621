"""The folder of a report, its page, the command that writes them, and what no report is written of."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from exporter.cli.main import cli
from exporter.common.errors import BadInput
from exporter.reporting.run import ReportSettings, report
from tests.several import Several
from tests.tiny import FORGET, RETAIN

ROOT = Path(__file__).resolve().parents[3]
Reported = Callable[..., tuple[Path, dict[str, Any]]]


def test_the_folder(several: Several, reported: Reported) -> None:
    out, numbers = reported(several.checkpoint)
    assert json.loads((out / "report.json").read_text()) == numbers
    ids = ["matrix", *(each["id"] for skill in numbers["skills"] for each in skill["figures"])]
    assert sorted(path.name for path in (out / "figures").iterdir()) == sorted(f"{name}.png" for name in ids)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (out / "figures").iterdir())
    assert sorted(path.name for path in out.iterdir()) == ["figures", "report.html", "report.json"]


def test_the_page_begins_with_the_verdict(several: Several, reported: Reported) -> None:
    out, numbers = reported(several.checkpoint)
    lines = [line for skill in numbers["skills"] for line in skill["verdict"]]
    assert any("held-out" in line for line in lines)
    begin = (out / "report.html").read_text().split("<dl>")[0]
    assert list(map(html.unescape, re.findall(r"<li>(.*?)</li>", begin))) == lines


def test_the_page_needs_nothing_from_elsewhere_and_tells_no_prompt(several: Several, reported: Reported) -> None:
    out, _ = reported(several.checkpoint)
    page = (out / "report.html").read_text()
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r"\b(?:src|href|action|srcset)\s*=|url\(|@import|<link|<iframe", markup)
    assert not re.findall(r"<script[^>]*\ssrc", page)
    assert "default-src 'none'" in page and "'unsafe-eval'" not in page and "script-src 'sha256-" in page
    assert 'name="viewport" content="width=device-width' in page
    assert "songs &lt;b&gt;" in page and "songs <b>" not in page
    for text in (page, (out / "report.json").read_text()):
        assert str(several.checkpoint.parent) not in text and str(Path.home()) + "/" not in text
        assert FORGET[0][10:] not in text and RETAIN[0][:30] not in text


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_bytes(several: Several, reported: Reported) -> None:
    one, two = (reported(several.checkpoint, fresh=fresh)[0] for fresh in (False, True))
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) > 10
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


@pytest.mark.slow
def test_the_command(several: Several, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(several.checkpoint, copy)
    done = CliRunner().invoke(cli, ["report", f"{copy}/", "--json"])
    assert done.exit_code == 0, done.output
    default = tmp_path / "checkpoint-report"
    assert json.loads(done.stdout) == json.loads((default / "report.json").read_text())
    with pytest.raises(BadInput, match="--overwrite"):
        CliRunner().invoke(cli, ["report", str(copy)], standalone_mode=False, catch_exceptions=False)
    (default / "figures" / "old.png").write_bytes(b"")
    done = CliRunner().invoke(cli, ["report", str(copy), "--overwrite", "--quiet"])
    assert done.exit_code == 0 and "report.html" in done.stdout
    assert not (default / "figures" / "old.png").exists()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    shutil.rmtree(default)
    monkeypatch.chdir(copy)
    done = CliRunner().invoke(cli, ["report", ".", "--quiet"])
    assert done.exit_code == 0 and (default / "report.html").is_file()


def damaged(several: Several, folder: Path) -> Path:
    """The numbers of the checkpoint alone, to be damaged."""
    shutil.copytree(several.checkpoint / "reproduce", folder / "copy" / "reproduce")
    shutil.copyfile(several.checkpoint / "config.json", folder / "copy" / "config.json")
    return folder / "copy"


def no_hash(checkpoint: Path) -> None:
    path = checkpoint / "reproduce" / "summary.json"
    path.write_text(path.read_text().replace('"layer": 1', '"layer": 2'))


def other_rows(checkpoint: Path) -> None:
    path = checkpoint / "reproduce" / "statistics.safetensors"
    tensors = load_file(path)
    tensors["sums.scores.forget.report"] = tensors["sums.scores.forget.report"][:-1]
    save_file(tensors, path)


def not_finite(checkpoint: Path) -> None:
    path = checkpoint / "reproduce" / "statistics.safetensors"
    tensors = load_file(path)
    tensors["sums.ksd.plain.deviation"][1, 3] = np.nan
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json has no unskill object"),
        (lambda folder: shutil.rmtree(folder / "reproduce"), "has no reproduce/"),
        (lambda folder: (folder / "reproduce" / "hashes.json").unlink(), "has no hashes.json"),
        (lambda folder: (folder / "reproduce" / "statistics.safetensors").unlink(), "has no statistics.safetensors"),
        (lambda folder: (folder / "reproduce" / "statistics.safetensors").write_bytes(b"x" * 90), "cannot be read"),
        (lambda folder: (folder / "reproduce" / "prompts.json").write_text("[]"), "not a JSON object"),
        (no_hash, "summary.json is not as the export wrote it"),
        (other_rows, "sums.scores.forget.report does not belong"),
        (not_finite, "sums.ksd.plain.deviation does not belong"),
    ],
)
def test_damaged_checkpoints(several: Several, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = damaged(several, tmp_path)
    damage(folder)
    with pytest.raises(BadInput, match=re.escape(message)):
        report(ReportSettings(str(folder), tmp_path / "out"), lambda text: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_folders_that_are_not_to_be_replaced(several: Several, tmp_path: Path) -> None:
    folder = damaged(several, tmp_path)
    for out in (folder, tmp_path, folder / "report"):
        with pytest.raises(BadInput, match="--out and CHECKPOINT must be separate folders"):
            report(ReportSettings(str(folder), out, overwrite=True), lambda text: None)
    command = [sys.executable, "-m", "exporter", "report", str(folder), "--out", str(folder / "report")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout and len(done.stderr.splitlines()) == 1
    assert not (folder / "report").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(BadInput, match=r"is not a report \(it has no report.json\)"):
        report(ReportSettings(str(folder), tmp_path / "mine", overwrite=True), lambda text: None)
    with pytest.raises(BadInput, match="no such folder, and not the id of a model"):
        report(ReportSettings(str(tmp_path / "none"), tmp_path / "out"), lambda text: None)


def test_without_the_extra(several: Several, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.common.extras.find_spec", lambda name: None if name == "vl_convert" else name)
    with pytest.raises(BadInput, match=r"report needs the package vl-convert-python: pip install vl-convert-python\Z"):
        report(ReportSettings(str(several.checkpoint), tmp_path / "out"), lambda text: None)
