"""What a checkpoint says of itself is found without its weights, and shown without obeying it."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from transformers import AutoModelForCausalLM

from exporter.checkpoint.inspect import inspect
from exporter.checkpoint.layout import MARKER
from exporter.cli.main import cli
from exporter.cli.tables.inspect import parts
from exporter.common.errors import BadInput
from exporter.onnx.folder import plain_config
from tests.several import Several
from tests.tiny import Exported, edit_json

ROOT = Path(__file__).parents[4]
KEYS = {
    "checkpoint": str,
    "kind": str,
    "unskill": str,
    "format": int,
    "base": dict,
    "dtype": str,
    "seed": int,
    "draws": str,
    "compat": (str, type(None)),
    "forced": bool,
    "refusal": (dict, type(None)),
    "layers": dict,
    "neurons": dict,
    "skills": list,
    "warnings": (list, type(None)),
    "versions": (dict, type(None)),
    "sizes": (dict, type(None)),
    "missing": list,
    "reproduce": bool,
    "base_kept": bool,
    "graph": (dict, type(None)),
    "onnx": (dict, type(None)),
}
SKILL = {"name", "method", "works", "neurons", "key_space", "sources"}
NEURONS = {"score", "beta", "within_budget", "neurons", "layers", "texts", "max_retain_loss"}
KEY_SPACE = {"layer", "alpha", "separates", "fault", "region", "discriminant", "formats", "rates"}


def check_schema(found: dict[str, Any]) -> None:
    """The keys that others read are all there, whatever the checkpoint."""
    assert found.keys() == KEYS.keys()
    assert all(isinstance(found[name], kind) for name, kind in KEYS.items())
    for skill in found["skills"]:
        assert skill.keys() == SKILL
        assert skill["neurons"] is None or skill["neurons"].keys() == NEURONS
        assert skill["key_space"] is None or skill["key_space"].keys() == KEY_SPACE
        for row in (skill["key_space"] or {"rates": []})["rates"]:
            assert row.keys() == {"what", "source", "format", "hits", "total", "rate", "low", "high"}
    assert json.loads(json.dumps(found)) == found


def shown(found: dict[str, Any], width: int = 100, terminal: bool = False) -> str:
    text = io.StringIO()
    Console(file=text, width=width, force_terminal=terminal).print(*parts(found), sep="\n")
    return text.getvalue()


@pytest.fixture
def copied(several: Several, tmp_path: Path) -> Path:
    """The checkpoint, to be altered."""
    shutil.copytree(several.checkpoint, tmp_path / "mine")
    return tmp_path / "mine"


def test_everything_there_is(several: Several) -> None:
    found = inspect(str(several.checkpoint))
    check_schema(found)
    files = [path for path in several.checkpoint.rglob("*") if path.is_file()]
    summary = json.loads((several.checkpoint / "reproduce" / "summary.json").read_text())
    assert (found["checkpoint"], found["kind"], found["base"]["name"]) == ("checkpoint", "checkpoint", "base")
    assert found["sizes"]["total"] == sum(path.stat().st_size for path in files)
    assert found["sizes"]["interventions"] == sorted(several.checkpoint.glob("model-*"))[-1].stat().st_size
    assert found["reproduce"] and found["base_kept"] and not found["missing"] and found["forced"]
    assert found["neurons"]["changed"] == summary["neurons_changed"]
    assert found["neurons"]["share"] == found["neurons"]["changed"] / (3 * 64)
    assert found["refusal"]["token_id"] == 400 and found["refusal"]["eos_token_id"] == 2
    for skill, told in zip(found["skills"], summary["skills"], strict=True):
        assert (skill["name"], skill["works"], skill["sources"]) == (told["name"], told["works"], told["sources"])
        if told["neurons"]:
            assert skill["neurons"]["texts"] == told["neurons"]["texts"]
        if told["key_space"]:
            rates = {(row["what"], row["source"]): row["hits"] for row in skill["key_space"]["rates"]}
            source = next(iter(told["key_space"]["blocked"]))
            assert rates["forget set", source] == told["key_space"]["blocked"][source]["all"]["hits"]
            assert {what for what, _ in rates} >= {"false blocks", "false blocks over answers", "known limit"}


@pytest.mark.slow
def test_every_method(tiny: Callable[..., Exported]) -> None:
    for method in ("ksd", "na"):
        found = inspect(str(tiny("llama", method).checkpoint))
        check_schema(found)
        assert (found["refusal"] is None) == (method == "na")
        assert (method == "na") == (found["neurons"]["changed"] > 0)
        text = shown(found)
        assert ("held-out texts" in text) == (method == "na") and ("AutoModel" in text) == (method == "ksd")


def test_saved_anew(several: Several, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(several.checkpoint, trust_remote_code=True)
    model.save_pretrained(tmp_path / "saved")
    found, before = inspect(str(tmp_path / "saved")), inspect(str(several.checkpoint))
    check_schema(found)
    assert not found["reproduce"] and not found["base_kept"] and found["versions"] is None
    for key in ("dtype", "seed", "forced", "refusal", "layers", "neurons"):
        assert found[key] == before[key]
    assert [skill["works"] for skill in found["skills"]] == [skill["works"] for skill in before["skills"]]
    text = shown(found)
    assert "loaded and saved again" in text and "forget set" in text and "held-out texts" not in text


def test_files_that_are_gone(copied: Path) -> None:
    (copied / "model-00001-of-00002.safetensors").unlink()
    (copied / "tokenizer.json").unlink()
    shutil.rmtree(copied / "reproduce" / "base")
    found = inspect(str(copied))
    assert {"model-00001-of-00002.safetensors", "tokenizer.json"} < set(found["missing"])
    text = shown(found)
    assert "MISSING" in text and "tokenizer.json" in text and "not kept" in text


def onnx_folder(checkpoint: Path, folder: Path, **changes: Any) -> Path:
    """What `unskill onnx` writes around a graph."""
    folder.mkdir()
    config = plain_config(json.loads((checkpoint / "config.json").read_text()), "float32")
    (folder / "config.json").write_text(json.dumps(config))
    marker = {"unskill": "0.1.0", "checkpoint": checkpoint.name, "dtype": "float32", "bytes": 1, "agrees": True}
    (folder / MARKER).write_text(json.dumps({**marker, "self_check": [], **changes}))
    return folder


def test_onnx_folders(copied: Path) -> None:
    folder = onnx_folder(copied, copied.with_name("mine-onnx"))
    found = inspect(str(folder))
    check_schema(found)
    assert found["kind"] == "onnx" and "float32 of mine; its self-check agreed" in shown(found)
    beside = inspect(str(copied))["onnx"]
    assert beside == {"name": "mine-onnx", "numbers": "float32", "same": True, "fault": None}
    edit_json(folder / "config.json", lambda config: {**config, "unskill": {**config["unskill"], "sha256": {}}})
    assert "of another export" in shown(inspect(str(copied)))
    edit_json(folder / MARKER, lambda marker: {**marker, "quantize": "int8"})
    assert "mine-onnx beside it, int8, refitted" in shown(inspect(str(copied)))


@pytest.mark.parametrize("name", [MARKER, "config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_onnx_folder_beside(copied: Path, name: str, content: str) -> None:
    (onnx_folder(copied, copied.with_name("mine-onnx")) / name).write_text(content)
    found = inspect(str(copied))
    check_schema(found)
    if name == MARKER and content == "{}":
        assert found["onnx"] == {"name": "mine-onnx", "numbers": None, "same": True, "fault": None}
    else:
        assert "mine-onnx" in found["onnx"]["fault"] and name in found["onnx"]["fault"]
        assert found["onnx"]["fault"] in shown(found, width=200)


def test_on_the_hub(several: Several, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files alone are downloaded; sizes are the Hub's."""
    asked: list[str] = []

    def download(model: str, what: str, patterns: list[str]) -> tuple[Path, str]:
        asked.extend(patterns)
        for name in patterns:
            if (several.checkpoint / name).is_file():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(several.checkpoint / name, tmp_path / name)
        return tmp_path, "0" * 40

    def model_info(self: object, model: str, revision: str, files_metadata: bool) -> SimpleNamespace:
        if not online:
            raise ConnectionError
        files = (path for path in several.checkpoint.rglob("*") if path.is_file())
        siblings = [
            SimpleNamespace(rfilename=str(path.relative_to(several.checkpoint)), size=path.stat().st_size)
            for path in files
        ]
        return SimpleNamespace(siblings=siblings)

    monkeypatch.setattr("exporter.models.files.download", download)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    online = True
    found = inspect("somebody/model")
    check_schema(found)
    assert found == inspect(str(several.checkpoint)) | {"checkpoint": "somebody/model"}
    assert not any("*" in name or name.endswith(".safetensors") or "tokenizer" in name for name in asked)
    online = False
    found = inspect("somebody/model")
    check_schema(found)
    assert found["sizes"] is None and "the Hub cannot be reached" in shown(found)


HOSTILE = "[red]x[/red] \x1b[31m\x07\x9b2J\u202e[/]\r\n:smile: [link=http://a]"


def test_names_are_shown_literally(copied: Path) -> None:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        first = content["skills"][0]
        first["name"] = HOSTILE
        if "key_space" in first:
            first["key_space"]["fault"] = HOSTILE
            first["key_space"]["blocked"] = {HOSTILE: first["key_space"]["blocked"].popitem()[1]}
            first["sources"][0]["label"] = HOSTILE
            content["model"] = HOSTILE
            content["warnings"][0]["message"] = HOSTILE
        else:
            first["separates"] = False
            first["blocked"] = {HOSTILE: first["blocked"].popitem()[1]}
        return content

    edit_json(copied / "config.json", lambda config: {**config, "unskill": change(config["unskill"])})
    edit_json(copied / "config.json", lambda c: {**c, "unskill": {**c["unskill"], "refusal": HOSTILE}})
    edit_json(copied / "reproduce" / "summary.json", change)
    found = inspect(str(copied))
    text = shown(found, width=400)
    literal = r"[red]x[/red] \x1b[31m\x07\x9b2J\u202e[/]\r\n:smile: [link=http://a]"
    assert text.count(literal) == 7  # skill, refusal, base, fault, source's label, source's rates, warning
    assert all(character.isprintable() or character == "\n" for character in text)
    bare = shown(found, width=400, terminal=True).replace(literal, "")
    assert "\x1b[" in bare and "\x07" not in bare and "\x1b]8" not in bare  # styles of ours, no links


@pytest.mark.parametrize("width", [60, 100])
def test_it_fits_the_terminal(several: Several, width: int) -> None:
    text = shown(inspect(str(several.checkpoint)), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\n\nskill letters: sp\n" in text
    for part in ("effect-size", "alpha", "95 % interval", "perplexity", "seed 0", "transformers", "FORCED", "sha256"):
        assert part in text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json is not JSON"),
        ("config.json", "{}", "not one that unskill wrote"),
        ("config.json", '{"unskill": {}}', "not as unskill writes it"),
        ("reproduce/summary.json", "[]", "summary.json is not a JSON object"),
        ("reproduce/summary.json", '{"skills": 7}', "not as unskill writes it"),
        ("model.safetensors.index.json", '{"weight_map": []}', "not as unskill writes it"),
        ("reproduce/versions.json", "\x00", "versions.json is not JSON"),
    ],
)
def test_broken_files(copied: Path, file: str, content: str, message: str) -> None:
    (copied / file).write_text(content)
    with pytest.raises(BadInput, match=message) as caught:
        inspect(str(copied))
    assert "CHECKPOINT mine" in str(caught.value) and "\n" not in str(caught.value)


def test_summary_that_cannot_be_shown(copied: Path) -> None:
    def change(summary: dict[str, Any]) -> dict[str, Any]:
        summary["skills"][0]["sources"][0] = {"label": "x"}
        return summary

    edit_json(copied / "reproduce" / "summary.json", change)
    done = CliRunner().invoke(cli, ["inspect", str(copied)])
    assert isinstance(done.exception, BadInput) and done.stdout == ""


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no config\.json"):
        inspect(str(tmp_path))
    with pytest.raises(BadInput, match="no such folder, and not the id of a model"):
        inspect(str(tmp_path / "none"))


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_no_torch_and_no_waiting(several: Several, flags: list[str]) -> None:
    script = "import sys; from exporter.cli.main import cli; cli.main(standalone_mode=False)\n"
    script += "assert not {'torch', 'transformers', 'numpy', 'scipy'} & sys.modules.keys()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, "inspect", str(several.checkpoint), *flags]
    least = float("inf")
    # Of the CPU: on the clock, other processes that keep the cores busy would count. They slow the CPU down too, so
    # the best of three counts.
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=20)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "" and "\x1b" not in done.stdout
        least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert least < 1
    if flags:
        check_schema(json.loads(done.stdout))
    else:
        assert max(map(len, done.stdout.splitlines())) <= 100


def test_help() -> None:
    done = CliRunner().invoke(cli, ["inspect", "--help"])
    assert done.exit_code == 0 and "unskill inspect OUT" in done.stdout
