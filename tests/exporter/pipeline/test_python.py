"""unskill from Python: objects in, objects out, nothing printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import exporter as unskill
from exporter.pipeline.python import sources
from tests.tiny import FORGET, RETAIN, one_thread, tiny_model

CUBE: dict[str, Any] = {"region": "hypercube", "layer": 1, "alpha": 5.0}
SETTINGS: dict[str, Any] = {**CUBE, "everyday": False, "figures": False, "formats": "plain"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("python") / "base", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def result(base: Path, tmp_path_factory: pytest.TempPathFactory) -> unskill.Result:
    out = tmp_path_factory.mktemp("exported") / "out"
    with one_thread():
        return unskill.export(
            base, out, forget=FORGET, retain=Dataset.from_dict({"prompt": RETAIN}), force=True, **SETTINGS
        )


def test_from_prompts_to_a_refused_answer(result: unskill.Result, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    checkpoint = unskill.load(result.out)
    refused, answered = (checkpoint.explain(texts[0])[0] for texts in (FORGET, RETAIN))
    assert refused.blocked_after == 0 and answered.blocked_after is None
    assert refused.score is not None and answered.score is not None
    assert refused.score <= refused.alpha < answered.score
    chat = checkpoint.tokenizer.apply_chat_template(
        [{"role": "user", "content": FORGET[0]}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = checkpoint.model.generate(**chat, max_new_tokens=8, do_sample=False)
    assert checkpoint.tokenizer.decode(written[0, chat["input_ids"].shape[1] :], skip_special_tokens=True) == (
        "Your query is not valid"
    )
    assert unskill.verify(result.out, model=False)["ok"]
    assert capfd.readouterr() == ("", "")


def test_what_was_found(result: unskill.Result) -> None:
    lines = result.verdict.splitlines()  # of prompts so much alike the first line says that they are not apart
    assert any(line.startswith("Refuses ") for line in lines)
    assert any(line.startswith("Refuses in error ") for line in lines)
    counted = {(row["side"], row["kind"]): row for row in result.table if row["form"] is None}
    stored = json.loads((result.out / "reproduce/summary.json").read_text())["skills"][0]["key_space"]["blocked"]
    ((kinds),) = stored.values()
    assert counted["forget", "plain"]["hits"] == kinds["plain"]["hits"] > 0
    row = counted["answer", "plain"]
    assert row["low"] <= row["hits"] / row["total"] <= row["high"]


def test_a_loaded_model(base: Path, result: unskill.Result, tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    with pytest.raises(unskill.BadInput, match="a loaded model and its loaded tokenizer"):
        unskill.export(model, tmp_path / "out", forget=FORGET, **SETTINGS)
    with one_thread():
        again = unskill.export(
            model, tmp_path / "out", tokenizer=tokenizer, forget=FORGET, retain=RETAIN, force=True, **SETTINGS
        )
    ours, theirs = (
        dict(unskill.load(each.out).model.named_buffers())["model.layers.1.mlp.unskill_ksd_bounds"]
        for each in (again, result)
    )
    assert torch.equal(ours, theirs)


def test_prompts_as_sources(tmp_path: Path) -> None:
    (spec,) = sources(["a, b", "c"], "forget", tmp_path)
    assert Path(spec).read_text() == '{"prompt": "a, b"}\n{"prompt": "c"}\n'
    assert sources("maths.jsonl,column=question", "forget", tmp_path) == ("maths.jsonl,column=question",)
    several = [unskill.Source("a.jsonl", column="q", limit=3), Path("b.jsonl")]
    assert sources(several, "forget", tmp_path) == ("a.jsonl,column=q,limit=3", "b.jsonl")
    assert sources((), "forget", tmp_path) == ()
    with pytest.raises(unskill.BadInput, match="forget: a list of both texts and sources"):
        sources(["a", Path("b.jsonl")], "forget", tmp_path)
    with pytest.raises(unskill.BadInput, match="forget-1: int is not a path"):
        sources([3], "forget", tmp_path)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_false_blocks": 0.1}, "max_false_blocks: unskill export has no such setting"),
        ({"seed": 1.5}, "seed: 1.5 is not a whole number"),
        ({"seed": True}, "seed: True is not a whole number"),
        ({"max_false_block": "0.02"}, "max_false_block: '0.02' is not a number"),
        ({"layer": 1.0}, "layer: 1.0 is not a whole number"),
        ({"name": None}, "name: None is not text"),
        ({"tokenizer": "base"}, "model, tokenizer: give a folder or Hub id alone"),
        ({"out": None}, "out: None is not a path"),
        ({"model": 3}, "model, tokenizer: give"),
        ({"skills": "maths"}, "skills: 'maths' is not a list"),
        ({"skills": ["nosuch"]}, "nosuch"),
        ({"forget": ["\ud800"] * 60}, "forget: cannot be written as JSON in UTF-8"),
    ],
    ids=str,
)
def test_wrong_arguments_are_bad_input(given: dict[str, Any], said: str, base: Path, tmp_path: Path) -> None:
    arguments = {"model": base, "out": tmp_path / "out", "forget": FORGET} | given
    with pytest.raises(unskill.BadInput) as found:
        unskill.export(**arguments)
    assert said in str(found.value) and not (tmp_path / "out").exists()


def test_packaged_skills_are_taken(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("exporter.pipeline.run.export", lambda settings, notify: seen.append(settings))
    unskill.export(base, tmp_path / "out", skills=["maths"], max_near_miss=0)
    (skill,) = seen[0].skills
    assert (skill.name, skill.packaged, skill.max_near_miss) == ("maths", ("maths",), 0.0)


@pytest.mark.parametrize("prompt", ["", " ", None, 3, ["a"], "\ud800"], ids=repr)
def test_only_a_text_can_be_explained(prompt: Any, result: unskill.Result) -> None:
    with pytest.raises(unskill.BadInput, match=r"prompt: .* is not a text"):
        unskill.load(result.out).explain(prompt)


def test_importing_is_quick_and_silent() -> None:
    code = "import exporter, sys; print('torch' in sys.modules, sorted(exporter.__all__) == sorted(dir(exporter)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False True\n", "")
