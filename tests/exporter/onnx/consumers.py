"""What else runs ONNX folders, as `make consumers` installs it, and what torch answers where they do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import Exported, one_thread

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples" / "onnx"
NODE_PACKAGES = ROOT / "build" / "node" / "node_modules"
GENAI = "genai"
OLD_RUNTIME = "ort-1.20.1"
NEW_TOKENS = 64
"""How many tokens the examples in examples/onnx ask for."""


def interpreter(name: str) -> Path:
    """Python of one of the environments, which know nothing of unskill."""
    python = ROOT / "build" / name / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"no environment build/{name}: make consumers")
    return python


def need_node_packages() -> None:
    if not (NODE_PACKAGES / "@huggingface" / "transformers").is_dir():
        pytest.skip("no npm packages in build/node: make node")


@dataclass(frozen=True)
class Answer:
    """What torch answers, greedily."""

    prompt: str
    prompt_ids: list[int]
    ids: list[int]
    text: str

    @property
    def printable(self) -> bool:
        """Whether every program prints the text alike: tokens of bytes are parts of characters."""
        return self.text.isprintable() and "\ufffd" not in self.text and self.text.strip() == self.text != ""


def answers(exported: Exported, prompts: list[str], new_tokens: int = NEW_TOKENS) -> list[Answer]:
    """The checkpoint's, with torch."""
    tokenizer = AutoTokenizer.from_pretrained(exported.checkpoint, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(exported.checkpoint, trust_remote_code=True).eval()
    found = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        given = inputs["input_ids"][0].tolist()
        with one_thread():
            output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        ids = output[0, len(given) :].tolist()
        found.append(Answer(prompt, given, ids, tokenizer.decode(ids, skip_special_tokens=True)))
    return found


def printable(found: list[Answer]) -> Answer:
    """The first answer that programs can be asked to print."""
    return next(each for each in found if each.printable)
