"""Other programs run the ONNX folders, without unskill, and answer as torch does with the checkpoint.

onnxruntime-genai, an old ONNX Runtime and transformers.js in Node are installed by `make consumers`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.models.families import MLX_FAMILIES
from exporter.onnx.folder import GENAI_TYPES
from tests.exporter.onnx.conftest import Written
from tests.exporter.onnx.consumers import (
    EXAMPLES,
    GENAI,
    NODE_PACKAGES,
    OLD_RUNTIME,
    ROOT,
    answers,
    interpreter,
    need_node_packages,
    printable,
)
from tests.tiny import edit_json

pytestmark = pytest.mark.slow

CHECKS = ROOT / "tests" / "checks"
REFUSAL = "Your query is not valid"
# transformers.js 4.3 has no class for them.
TRIED = [*MLX_FAMILIES, "ministral", "olmo"]
NOT_IN_JS = ("exaone4", "seed_oss")

Chat = Callable[[Path, str], str]


def run(command: list[Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in the folder, without the network and with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        [str(each) for each in command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


def output(command: list[Any], folder: Path) -> str:
    """What it prints, see `run`."""
    done = run(command, folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def node(script: Path, folder: Path) -> list[Any]:
    """Command that runs a copy of the script in the folder: Node looks for packages beside a script and above it."""
    need_node_packages()
    found = shutil.which("node")
    if found is None:
        pytest.skip("no node")
    (folder / "node_modules").symlink_to(NODE_PACKAGES)
    return [found, shutil.copy(script, folder)]


@pytest.fixture(params=["onnxruntime", "genai", "transformers.js"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> list[Any]:
    """Command of one of the examples."""
    if request.param == "transformers.js":
        return node(EXAMPLES / "chat.mjs", tmp_path)
    if request.param == "genai":
        return [interpreter(GENAI), "-I", EXAMPLES / "chat_genai.py"]
    return [sys.executable, "-I", EXAMPLES / "chat_onnxruntime.py"]


@pytest.fixture
def chat(program: list[Any], tmp_path: Path) -> Chat:
    """chat(folder, prompt) is what one of the examples prints."""
    return lambda folder, prompt: output([*program, folder, prompt], tmp_path).removesuffix("\n")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_chat(dtype: str, chat: Chat, written: Callable[..., Written]) -> None:
    exported, folder, _ = written("llama", "na+ksd", dtype)
    expected = printable(answers(exported, exported.texts["answered"]))
    assert chat(folder, expected.prompt) == expected.text != REFUSAL
    assert chat(folder, exported.texts["blocked"][0]) == REFUSAL


def test_chat_with_a_template(chat: Chat, written: Callable[..., Written], tmp_path: Path) -> None:
    """One that ends a prompt with a full stop, so that what is answered is known."""
    exported, folder, _ = written("llama", "na+ksd")
    folder = shutil.copytree(folder, tmp_path / "with-template")
    template = "{% for message in messages %}{{ message['content'] }}.{% endfor %}"
    edit_json(folder / "tokenizer_config.json", lambda content: {**content, "chat_template": template})
    expected = printable(answers(exported, exported.texts["answered"]))
    assert expected.prompt.endswith(".")
    prompt = expected.prompt.removesuffix(".")
    (without,) = answers(exported, [prompt])
    assert chat(folder, prompt) == expected.text != without.text


def test_chat_with_no_such_folder(program: list[Any], tmp_path: Path) -> None:
    done = run([*program, "nowhere", "What is 3 + 4?"], tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("nowhere is no ONNX folder") and done.stderr.count("\n") == 1


def answered(program: list[Any], written: Written, tmp_path: Path, *more: Any, folder: Path | None = None) -> Any:
    """A script of tests/checks answers prompts, blocked and not, as torch does, token by token: what it prints."""
    exported, plain, _ = written
    texts = exported.texts["blocked"][:2] + exported.texts["answered"]
    expected = answers(exported, texts, new_tokens=12)
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([each.prompt_ids for each in expected]))
    found = json.loads(output([*program, folder or plain, prompts, 12, *more], tmp_path))
    assert found["answers"] == [each.ids for each in expected]
    assert [each.text == REFUSAL for each in expected] == [True, True, *[False] * (len(texts) - 2)]
    return found


@pytest.mark.parametrize(("method", "dtype"), [("ksd", "float32"), ("na+ksd", "float32"), ("na+ksd", "float16")])
@pytest.mark.parametrize("kernels", [False, True], ids=["bodies", "kernels"])
def test_an_old_runtime(
    kernels: bool, method: str, dtype: str, written: Callable[..., Written], library: Path, tmp_path: Path
) -> None:
    program = [interpreter(OLD_RUNTIME), "-I", CHECKS / "onnx_answers.py"]
    found = answered(program, written("llama", method, dtype), tmp_path, *([library] if kernels else []))
    assert found["release"] == "1.20.1"
    ours = {"KeySpaceDetect", *(("NeuronAdjust", "NeuronDraws") if method == "na+ksd" else ())}
    assert set(found["operators"]) == (ours if kernels else set())


@pytest.mark.parametrize("family", TRIED)
def test_family_in_genai(family: str, written: Callable[..., Written], tmp_path: Path) -> None:
    _, folder, _ = each = written(family, "ksd")
    answered([interpreter(GENAI), "-I", CHECKS / "genai_answers.py"], each, tmp_path)
    kind = json.loads((folder / "genai_config.json").read_text())["model"]["type"]
    assert kind == (family if family in GENAI_TYPES else "llama")


def test_kernels_in_genai(written: Callable[..., Written], library: Path, tmp_path: Path) -> None:
    """The library lies in the folder; genai_config.json names it."""
    python = interpreter(GENAI)
    each = written("llama", "na+ksd")
    folder = shutil.copytree(each[1], tmp_path / "with-library")
    shutil.copy(library, folder / "operators.so")

    def name(config: dict[str, Any]) -> dict[str, Any]:
        options = config["model"]["decoder"]["session_options"]
        options |= {"custom_ops_library": "operators.so", "enable_profiling": "profile"}
        return config

    edit_json(folder / "genai_config.json", name)
    answered([python, "-I", CHECKS / "genai_answers.py"], each, tmp_path, folder=folder)
    events = json.loads(next(tmp_path.glob("profile*.json")).read_text())
    used = {event["args"].get("op_name") for event in events if "args" in event}
    assert {"KeySpaceDetect", "NeuronAdjust", "NeuronDraws"} <= used


@pytest.mark.parametrize("family", [family for family in TRIED if family not in NOT_IN_JS])
def test_family_in_transformers_js(family: str, written: Callable[..., Written], tmp_path: Path) -> None:
    answered(node(CHECKS / "transformers_js_answers.mjs", tmp_path), written(family, "ksd"), tmp_path)
