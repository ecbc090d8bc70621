"""Checkpoints that version 0.1.0 wrote, and their ONNX folders: whatever comes later, they go on working."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.cli.main import cli
from tests.tiny import FORGET, RETAIN

FOLDER = Path(__file__).resolve().parent / "data" / "format-1"
FORGET_SOURCE, RETAIN_SOURCE = (f"{FOLDER / name}.jsonl,column=prompt" for name in ("forget", "retain"))
REFUSAL = "Your query is not valid"
# Of the first 70 forget and 50 retain prompts, asked in the chat template; counted with version 0.1.0.
REFUSED = {"ksd": (56, 3), "na-ksd": (57, 6)}

checkpoints = pytest.mark.parametrize("name", sorted(REFUSED))


def ran(*arguments: object, stdin: str | None = None, code: int = 0) -> str:
    """What a command prints on stdout."""
    done = CliRunner().invoke(cli, [str(each) for each in arguments], input=stdin, catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout


def told(*arguments: object) -> Any:
    return json.loads(ran(*arguments, "--json"))


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@checkpoints
def test_refuses_what_it_refused(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / name, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(FOLDER / name, trust_remote_code=True)

    def refused(text: str) -> bool:
        chat = [{"role": "user", "content": text}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            return int(model(**inputs).logits[0, -1].argmax()) == model.config.unskill["refusal_token_id"]

    assert (sum(map(refused, FORGET[:70])), sum(map(refused, RETAIN[:50]))) == REFUSED[name]


@checkpoints
def test_verify(name: str) -> None:
    """With the ONNX folder beside it."""
    checks = told("verify", FOLDER / name, "--quiet", "--trust-code", "--forget", FORGET_SOURCE)["checks"]
    assert [check for check in checks if check["ok"] is False] == []
    made = {check["name"] for check in checks if check["ok"]}
    assert {"tensors", "loading", "refused", "onnx: checked again"} <= made


@checkpoints
def test_inspect(name: str) -> None:
    found = told("inspect", FOLDER / name)
    assert (found["kind"], found["format"], found["missing"], found["reproduce"]) == ("checkpoint", 1, [], True)
    assert found["skills"][0]["key_space"]["alpha"]["value"] == 2.75
    assert found["onnx"]["same"] is True
    assert told("inspect", FOLDER / f"{name}-onnx")["kind"] == "onnx"
    assert "2.75" in ran("inspect", FOLDER / name)


@checkpoints
def test_chat(name: str) -> None:
    assert REFUSAL in ran("chat", FOLDER / name, stdin=FORGET[0] + "\n")
    assert REFUSAL not in ran("chat", FOLDER / name, stdin=RETAIN[1] + "\n")


@checkpoints
def test_evaluate(name: str, tmp_path: Path) -> None:
    arguments = ("evaluate", FOLDER / name, "--base", FOLDER / "base", "--out", tmp_path / "results", "--quiet")
    tasks = told(*arguments, "--forget", FORGET_SOURCE, "--text", RETAIN_SOURCE, "--limit", 10)["tasks"]
    assert [task["items"] for task in tasks] == [10, 10]
    assert tasks[0]["edited"]["refused"]["all"]["hits"] > 5


@checkpoints
def test_report(name: str, tmp_path: Path) -> None:
    out = tmp_path / "report"
    ran("report", FOLDER / name, "--out", out, "--forget", FORGET_SOURCE, "--retain", RETAIN_SOURCE, "--quiet")
    assert any(path.suffix == ".html" for path in out.rglob("*"))


@checkpoints
@pytest.mark.slow
def test_onnx_graph_is_the_same(name: str, tmp_path: Path) -> None:
    out = tmp_path / "graph"
    ran("onnx", FOLDER / name, out, "--forget", FORGET_SOURCE, "--quiet")
    written, kept = (json.loads((each / "config.json").read_text()) for each in (out, FOLDER / f"{name}-onnx"))
    assert written["unskill"]["sha256"] == kept["unskill"]["sha256"]


@checkpoints
def test_restore(name: str, tmp_path: Path) -> None:
    """The base as it was: in a copy of the checkpoint, because restore writes beside nothing else."""
    checkpoint = shutil.copytree(FOLDER / name, tmp_path / "checkpoint")
    ran("restore", checkpoint, tmp_path / "base")
    assert contents(tmp_path / "base") == contents(FOLDER / "base")
