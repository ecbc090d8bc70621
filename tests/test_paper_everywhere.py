"""examples/paper/everywhere.py on a tiny checkpoint: positions inside hypercubes, against the bounds themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.paper.everywhere import Positions, positions
from exporter.common.errors import BadInput
from exporter.evaluation.items import Item
from exporter.models.files import Base
from exporter.models.loading import LoadedModel
from tests.paper_runs import found, invoke
from tests.tiny import FORGET, LAYER, RETAIN, Exported

pytestmark = pytest.mark.slow

RECIPE = """
experiment = "everywhere"
title = "tiny"
model = "none"
items = "items.jsonl"
"""
CHOICES = ["one", "two", "three", "four"]
# The last one has nothing in common with the forget set.
QUESTIONS = [*FORGET[:3], RETAIN[0], f"{RETAIN[1]} {FORGET[5]}", "Why?"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    rows = [
        {"subject": f"about_{row % 2}", "question": question, "choices": CHOICES, "answer": row % 4}
        for row, question in enumerate(QUESTIONS)
    ]
    write(tmp_path, rows)
    return tmp_path


def write(folder: Path, rows: list[dict[str, object]]) -> None:
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def inside(checkpoint: Path, text: str) -> tuple[list[int], int]:
    """Positions whose key is between the stored bounds, on the base model's layers alone, and the number of tokens."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    stored = load_file(sorted(checkpoint.glob("*.safetensors"))[-1])
    (bounds,) = (tensor for name, tensor in stored.items() if name.endswith("unskill_ksd_bounds"))
    keys: list[torch.Tensor] = []
    layer = model.model.layers[LAYER["llama"]].mlp.down_proj
    layer.register_forward_pre_hook(lambda module, inputs: keys.append(inputs[0][0]))
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        model(ids)
    hit = torch.stack([((keys[0] >= low) & (keys[0] <= high)).all(-1) for low, high in bounds]).any(0)
    return hit.nonzero().flatten().tolist(), ids.shape[1]


def texts(row: int) -> dict[str, str]:
    """An item as the two forms have it, written out."""
    plain = QUESTIONS[row] + "\nA. one\nB. two\nC. three\nD. four"
    head = f"The following are multiple choice questions (with answers) about about {row % 2}.\n\n"
    return {"chat": plain, "evaluation": f"{head}{plain}\nAnswer:"}


def test_every_position_inside_is_found(tiny: Callable[..., Exported], place: Path) -> None:
    checkpoint = tiny("llama").checkpoint
    numbers = found(place, RECIPE, "--model", str(checkpoint))
    listed = {form: {} for form in ("chat", "evaluation")}
    for hit in numbers["hits"]:
        assert hit["subject"] == f"about_{(hit['row'] - 1) % 2}"
        listed[hit["form"]].setdefault(hit["row"], []).append((hit["position"], hit["from_end"]))
    for form, rows in listed.items():
        expected, tokens, last = {}, 0, 0
        for row in range(len(QUESTIONS)):
            places, length = inside(checkpoint, texts(row)[form])
            tokens += length
            last += length - 1 in places
            if places:
                expected[row + 1] = [(place, length - 1 - place) for place in places]
        assert rows == expected
        counts = numbers["forms"][form]
        assert counts["positions"] == tokens
        assert counts["positions_inside"] == sum(len(each) for each in expected.values())
        assert (counts["anywhere"]["hits"], counts["anywhere"]["total"]) == (len(expected), len(QUESTIONS))
        assert counts["last"]["hits"] == last
    # The forget prompts themselves are inside in the bare form, in the middle of the item; the short question is not.
    assert {1, 2, 3} <= set(listed["chat"]) and len(QUESTIONS) not in listed["chat"]


def test_pads_are_no_positions() -> None:
    def refuse_everything(input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4))

    model, tokenizer = Mock(side_effect=refuse_everything, device="cpu"), SimpleNamespace(pad_token_id=0)
    files = Base(Path(), "all", None, {"vocab_size": 4, "unskill": {"refusal_token_id": 3}}, ())
    items = [Item("items", row, {}) for row in (1, 2)]
    task = Positions("chat", items, [[1, 2], [1, 2, 1, 2]])
    assert positions(task, LoadedModel(files, model, tokenizer), None) == [[0, 1], [0, 1, 2, 3]]


def test_no_text_is_written_and_a_second_run_is_the_same(tiny: Callable[..., Exported], place: Path) -> None:
    flags = ("--model", str(tiny("llama").checkpoint))
    once = found(place, RECIPE, *flags)
    written = "".join(path.read_text(encoding="utf-8") for path in (place / "out").iterdir())
    assert not any(question[:20] in written for question in QUESTIONS[:-1]) and str(place) not in written
    assert found(place, RECIPE, *flags) == once
    assert found(place, RECIPE + "limit = 2\n", *flags)["forms"]["chat"]["last"]["total"] == 2


def test_what_cannot_be_read_is_one_line(tiny: Callable[..., Exported], place: Path) -> None:
    with pytest.raises(BadInput, match=r"^model: .* refuses nothing; give a checkpoint of method ksd"):
        invoke(place, RECIPE, "--model", str(tiny("llama", method="na").checkpoint))
    with pytest.raises(BadInput, match="CHECKPOINT base is not one that unskill wrote"):
        invoke(place, RECIPE, "--model", str(tiny("llama").base))
    with pytest.raises(BadInput, match="limit: Input should be greater than 0"):
        invoke(place, RECIPE + "limit = 0\n")
    write(place, [{"subject": "s", "question": "Why?", "choices": ["one"], "answer": 0}])
    with pytest.raises(BadInput, match=r"items items\.jsonl: row 1: column 'choices' is not a list of 2 to 10"):
        invoke(place, RECIPE, "--model", str(tiny("llama").checkpoint))
