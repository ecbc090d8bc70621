"""The command `unskill onnx` and `export --onnx`: folders, bad input, missing packages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from exporter.checkpoint.layout import MARKER
from exporter.cli.main import cli
from exporter.common.errors import BadInput
from exporter.onnx.check.runners import Session
from exporter.onnx.settings import OnnxSettings
from exporter.onnx.writing import write_onnx
from tests.exporter.onnx.test_writing import ROOT, answer, swapped
from tests.tiny import (
    FORGET,
    RETAIN,
    Exported,
    edit_json,
    one_thread,
    tiny_model,
    write_prompts,
)

pytestmark = pytest.mark.slow


def test_bad_input(tiny: Callable[..., Exported], tmp_path: Path) -> None:
    checkpoint = tiny("llama", "ksd").checkpoint
    (tmp_path / "there").mkdir()
    with pytest.raises(BadInput, match="exists: choose another"):
        write_onnx(OnnxSettings(str(checkpoint), tmp_path / "there"), lambda text: None)
    with pytest.raises(BadInput, match="--dtype: 'bfloat16' is not one of float32, float16"):
        OnnxSettings(str(checkpoint), tmp_path / "out", dtype="bfloat16")
    with pytest.raises(BadInput, match="has no unskill object"):
        write_onnx(OnnxSettings(str(tiny("llama", "ksd").base), tmp_path / "out"), lambda text: None)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    inside = shutil.copytree(checkpoint, tmp_path / "there" / "inside")
    for out in (tmp_path / "there", inside, inside / "onnx"):
        with pytest.raises(BadInput, match="OUT and CHECKPOINT must be separate folders"):
            write_onnx(OnnxSettings(str(inside), out, overwrite=True), lambda text: None)
    command = [sys.executable, "-m", "exporter", "onnx", str(inside), str(inside / "onnx")]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 2 and len(told.stderr.splitlines()) == 1 and not (inside / "onnx").exists()
    done = CliRunner().invoke(cli, ["onnx", "/"])
    assert isinstance(done.exception, BadInput) and "/ has no folder beside it" in str(done.exception)


def test_default_out_is_beside_the_checkpoint(tiny: Callable[..., Exported], tmp_path: Path) -> None:
    """As a user runs it, who sees a table."""
    checkpoint = shutil.copytree(tiny("llama", "ksd").checkpoint, tmp_path / "mine")
    command = [sys.executable, "-m", "exporter", "onnx", "mine", "--prompt-template", "{prompt}"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (checkpoint.parent / "mine-onnx" / "onnx" / "model.onnx").is_file()
    assert "every token refused" in done.stdout and "Wrote mine-onnx" in done.stdout
    assert all(line.startswith(("tracing", "traced")) for line in done.stderr.splitlines()), done.stderr
    script = [sys.executable, str(ROOT / "examples" / "onnx" / "chat_onnxruntime.py"), "mine-onnx"]
    text = tiny("llama", "ksd").texts["blocked"][0]
    said = subprocess.run([*script, text], cwd=tmp_path, capture_output=True, text=True, env=environment, check=True)
    assert said.stdout == "Your query is not valid\n"
    # An answer ends at each of the folder's ends, not only at the tokenizer's.
    tokenizer, text = AutoTokenizer.from_pretrained(tmp_path / "mine-onnx"), tiny("llama", "ksd").texts["answered"][0]
    session = Session(tmp_path / "mine-onnx" / "onnx" / "model.onnx")
    (first, *_) = answer(session, tokenizer(text)["input_ids"], -1)
    for ends in (first, [2, first]):
        edit_json(
            tmp_path / "mine-onnx" / "genai_config.json",
            lambda found, ends=ends: {**found, "model": {**found["model"], "eos_token_id": ends}},
        )
        said = subprocess.run([*script, text], cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert said.stdout == tokenizer.decode([first], skip_special_tokens=True) + "\n", said.stderr


def test_export_writes_both(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", chat=False)
    sources = [
        f"{write_prompts(tmp_path / f'{name}.jsonl', texts)},column=prompt"
        for name, texts in (("f", FORGET), ("r", RETAIN))
    ]
    command = [
        "export",
        str(base),
        str(tmp_path / "out"),
        "--forget",
        sources[0],
        "--retain",
        sources[1],
        "--no-everyday",
    ]
    command += [
        "--layer",
        "1",
        "--alpha",
        "5",
        "--prompt-template",
        "{prompt}",
        "--force",
        "--quiet",
        "--onnx",
        "--json",
    ]
    (tmp_path / "out-onnx").mkdir()
    done = CliRunner().invoke(cli, command)
    assert "out-onnx exists" in str(done.exception) and not (tmp_path / "out").exists()
    with one_thread(), swapped("KeySpaceDetect", "Or", "And"):
        done = CliRunner().invoke(cli, [*command, "--overwrite"])
    # The checkpoint is there, and said to be, though its graph is not.
    found = json.loads(done.stdout)
    assert "something else" in str(done.exception) and found["out"] == str(tmp_path / "out")
    assert found["onnx"]["agrees"] is False and found["onnx"]["self_check"] and "out" not in found["onnx"]
    assert (tmp_path / "out" / "config.json").is_file() and list((tmp_path / "out-onnx").iterdir()) == []
    with one_thread():
        done = CliRunner().invoke(cli, [*command[:-1], "--overwrite"])
    assert "torch against ONNX Runtime" in done.stdout and f"Wrote {tmp_path / 'out-onnx'} (" in done.stdout
    assert re.search(r"│ bodies +│ 8 ", done.stdout)
    found = json.loads((tmp_path / "out-onnx" / MARKER).read_text())
    assert found["agrees"] is True and found["self_check"][0]["sequences"] == 8
    assert (tmp_path / "out-onnx" / "onnx" / "model.onnx").is_file()


def test_missing_packages_are_named(tiny: Callable[..., Exported], tmp_path: Path) -> None:
    with (
        mock.patch("exporter.common.extras.find_spec", lambda name: None),
        pytest.raises(BadInput, match="pip install onnx onnxscript onnxruntime"),
    ):
        OnnxSettings(str(tiny("llama", "ksd").checkpoint), tmp_path / "out")
