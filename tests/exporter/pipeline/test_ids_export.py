"""What a base's ids come to in its checkpoint: the refusal ends the answer, verify passes, the base comes back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.checkpoint.base.restore import RestoreSettings, restore
from exporter.common.errors import BadInput
from exporter.models.prober import Prober
from exporter.pipeline.run import export
from exporter.verification.run import VerifySettings, verify
from tests.damage import edit, set_
from tests.exporter.models.test_named_ids import add_token, set_in
from tests.tiny import FORGET, RETAIN, edit_json, export_base, one_skill, tiny_model, write_prompts

GENERATION = "generation_config.json"
CUBE = {"layer": 1, "alpha": 5.0}


def answers(checkpoint: Path, texts: list[str], new_tokens: int = 8) -> list[list[int]]:
    """What a user gets who gives nothing but ids and mask, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    found = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        found.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def passes(checkpoint: Path, **settings: Any) -> bool:
    return bool(verify(VerifySettings(str(checkpoint), **settings), lambda text: None)["ok"])


def back(checkpoint: Path, out: Path, **settings: Any) -> None:
    restore(RestoreSettings(str(checkpoint), out, **settings), lambda text: None)


@pytest.mark.parametrize(
    ("generation", "ends"),
    [({}, 2), ({"eos_token_id": None}, [2]), ({"top_k": 7, "pad_token_id": 0}, [1, 2]), (None, 2), (None, [1, 2])],
    ids=repr,
)
def test_the_end_after_a_refusal_is_where_transformers_looks(
    tmp_path: Path, generation: dict[str, Any] | None, ends: Any
) -> None:
    base = tiny_model(tmp_path / "base", chat=False)
    set_in(base, "config.json", eos_token_id=ends)
    (base / GENERATION).unlink()
    if generation is not None:
        (base / GENERATION).write_text(json.dumps(generation))
    exported = export_base(tmp_path, base, **CUBE)
    settings = json.loads((exported.checkpoint / "config.json").read_text())["unskill"]
    refusal, end = settings["refusal_token_id"], settings["eos_token_id"]
    assert answers(exported.checkpoint, exported.texts["blocked"]) == [[refusal, end]] * 4
    assert passes(exported.checkpoint)
    there = exported.checkpoint / GENERATION
    if generation is None:
        assert not there.exists()
    else:
        assert json.loads(there.read_text()) == {**generation, "eos_token_id": end}
    back(exported.checkpoint, tmp_path / "back")
    back(exported.checkpoint, tmp_path / "back", overwrite=True)
    for name in (GENERATION, "config.json"):
        before, after = base / name, tmp_path / "back" / name
        assert after.exists() == before.exists()
        assert not before.exists() or after.read_bytes() == before.read_bytes()


def test_restore_leaves_no_generation_config_that_the_base_did_not_have(tmp_path: Path) -> None:
    """Written into the checkpoint later, or left in the folder that is replaced."""
    base = tiny_model(tmp_path / "base", chat=False)
    (base / GENERATION).unlink()
    checkpoint = export_base(tmp_path, base, **CUBE).checkpoint
    back(checkpoint, tmp_path / "back")
    for folder in (checkpoint, tmp_path / "back"):
        (folder / GENERATION).write_text('{"eos_token_id": 2}')
    assert not passes(checkpoint, model=False)
    back(checkpoint, tmp_path / "back", overwrite=True)
    assert not (tmp_path / "back" / GENERATION).exists()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    return export_base(folder, tiny_model(folder / "base", chat=False), **CUBE).checkpoint


@pytest.fixture
def checkpoint(exported: Path, tmp_path: Path) -> Path:
    """To be altered."""
    return Path(shutil.copytree(exported, tmp_path / "checkpoint"))


@pytest.mark.parametrize(
    "values",
    [
        {"eos_token_id": None},
        {"eos_token_id": []},
        {"eos_token_id": [2, -1]},
        {"eos_token_id": [2, 99999]},
        {"eos_token_id": 2.0},
        {"eos_token_id": True},
        {"pad_token_id": 400},
        {"pad_token_id": 401},
        {"pad_token_id": -1},
        {"bos_token_id": "1"},
    ],
    ids=repr,
)
def test_verify_asks_the_same_of_the_checkpoint(checkpoint: Path, values: dict[str, Any]) -> None:
    """400 is the refusal: as a pad it would be printed after every answer of a batch."""
    edit(checkpoint / GENERATION, set_(**values))
    found = verify(VerifySettings(str(checkpoint), model=False), lambda text: None)["checks"]
    said = [check["detail"] for check in found if check["name"] in ("config.json", "refusal token")]
    assert any(next(iter(values)) in each for each in said)


@pytest.mark.parametrize("change", [lambda found: found.pop("eos_token_id"), set_(eos_token_id=None)])
def test_a_checkpoint_whose_refusal_would_not_end_does_not_load(
    checkpoint: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    """config.json has it, and is not looked into."""
    edit(checkpoint / GENERATION, change)
    with pytest.raises(RuntimeError, match=r"unskill: generation_config\.json: eos_token_id None lacks 2"):
        AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)


@pytest.mark.parametrize("named", ["tokenizer.json", "tokenizer_config.json"])
def test_a_pad_token_without_a_row(tmp_path: Path, named: str) -> None:
    """Added for fine-tuning, and the embeddings not resized: pads are masked, so any row serves."""
    base = tiny_model(tmp_path / "base", chat=False)
    if named == "tokenizer.json":
        add_token(base, "[PAD]", 400)
    set_in(base, "tokenizer_config.json", pad_token="[PAD]")
    exported = export_base(tmp_path, base, **CUBE)
    checkpoint, texts = exported.checkpoint, exported.texts
    assert passes(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    assert tokenizer.pad_token is None and len(tokenizer) == 401
    refusal = json.loads((checkpoint / "config.json").read_text())["unskill"]["refusal_token_id"]
    assert [each[0] for each in answers(checkpoint, texts["blocked"])] == [refusal] * 4
    assert not any(refusal in each for each in answers(checkpoint, texts["answered"]))
    plain, ids = AutoModelForCausalLM.from_pretrained(base), tokenizer(RETAIN[0], return_tensors="pt")["input_ids"]
    ours = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    with torch.inference_mode():
        assert torch.equal(ours(ids).logits[..., :400], plain(ids).logits)


@pytest.fixture
def no_probing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is run through the model fails the test."""

    def forward(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("the probing has begun")

    monkeypatch.setattr(Prober, "forward", forward)
    monkeypatch.setattr(Prober, "pad", forward)


def refused(tmp_path: Path, base: Path, forget: list[str], retain: list[str], **settings: Any) -> str:
    """Why an export ends, in one line, with nothing written."""
    sources = write_prompts(tmp_path / "forget.jsonl", forget), write_prompts(tmp_path / "retain.jsonl", retain)
    asked = one_skill(base, tmp_path / "out", *sources, everyday=False, quiet=True, **settings)
    with pytest.raises(BadInput) as error:
        export(asked, lambda text: None)
    assert not (tmp_path / "out").exists() and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("method", ["ksd", "na", "sp"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda base: set_in(base, GENERATION, eos_token_id=[2, 400]),
        lambda base: set_in(base, GENERATION, eos_token_id=-1),
        lambda base: set_in(base, "config.json", pad_token_id=400),
        lambda base: (
            edit_json(base / "config.json", lambda old: {**old, "eos_token_id": None}) or (base / GENERATION).unlink()
        ),
    ],
    ids=["beyond", "minus one", "pad", "none"],
)
@pytest.mark.usefixtures("no_probing")
def test_unsound_ids_end_an_export_before_the_probing(tmp_path: Path, method: str, damage: Any) -> None:
    base = tiny_model(tmp_path / "base")
    damage(base)
    said = refused(tmp_path, base, FORGET, RETAIN, method=method)
    assert said.startswith("MODEL base: ") and "token_id" in said


@pytest.mark.parametrize(
    ("method", "where"),
    [
        *((method, flag) for method in ("ksd", "na", "sp") for flag in ("--forget", "--retain")),
        ("ksd", "--system-prompt"),
        ("ksd", "--prompt-template"),
    ],
)
@pytest.mark.usefixtures("no_probing")
def test_a_text_with_a_token_that_has_no_row(tmp_path: Path, method: str, where: str) -> None:
    base = tiny_model(tmp_path / "base")
    add_token(base, "<|image|>", 400)
    sides = {"--forget": list(FORGET), "--retain": list(RETAIN)}
    settings: dict[str, Any] = {"method": method}
    if where in sides:
        sides[where][70] += "<|image|>"
    elif where == "--system-prompt":
        settings["system_prompts"] = ("You see <|image|>.",)
    else:
        settings["prompt_template"] = "<|image|>{prompt}"
    said = refused(tmp_path, base, *sides.values(), **settings)
    assert said.startswith(where) and "has token '<|image|>' (400)" in said
    assert ("row 71" in said) == (where in sides)


@pytest.mark.parametrize("content", ["<think>", "<s>", "<image_soft_token>"])
def test_a_token_without_a_row_that_no_text_has(tmp_path: Path, content: str) -> None:
    """It is left out of the checkpoint's tokenizer, also where our own test texts spell it."""
    base = tiny_model(tmp_path / "base", chat=False)
    add_token(base, content, 400)
    assert passes(export_base(tmp_path, base, **CUBE).checkpoint)


@pytest.mark.usefixtures("no_probing")
def test_what_the_tokenizer_cannot_have_is_said_before_the_probing(tmp_path: Path) -> None:
    """A token in tokenizer_config.json alone, where the refusal was to take its row."""
    base = tiny_model(tmp_path / "base", padding_rows=3)
    set_in(base, "tokenizer_config.json", pad_token="[PAD]")
    assert "save its tokenizer anew" in refused(tmp_path, base, FORGET, RETAIN)
