"""examples/paper/conversation.py on tiny checkpoints, against the same conversation held turn by turn."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from custom_modeling.neuron_adjust import draw_context, uniform_draws
from exporter.common.errors import BadInput
from exporter.prompts.packaged import everyday_prompts
from tests import tiny as tiny_models
from tests.paper_runs import found, invoke
from tests.tiny import BETA, FORGET, RETAIN, Exported, export_base, tiny_model, write_prompts

pytestmark = pytest.mark.slow

TOKENS, ANSWER = 1500, 6
RECIPE = f"""
experiment = "conversation"
title = "tiny"
model = "none"
forget = "forget.jsonl,column=prompt"
retain = "retain.jsonl,column=prompt"
conversations = 2
tokens = {TOKENS}
answer_tokens = {ANSWER}
"""
# Of everyday prompts and of forget prompts far into a conversation it blocks some, not all.
ALPHA = 4.2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sources and a chat model's checkpoints `na` and `na+ksd`."""
    folder = tmp_path_factory.mktemp("conversation")
    write_prompts(folder / "forget.jsonl", FORGET)
    write_prompts(folder / "retain.jsonl", RETAIN)
    base = tiny_model(folder / "base", chat=True, max_position_embeddings=4096)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_models, "sort_out", lambda checkpoint: ([], []))
        for method, cube in (("na", {}), ("na+ksd", {"layer": 1, "alpha": ALPHA})):
            (folder / method).mkdir()
            settings = {"method": method, "beta": BETA, "score": "effect-size", "prompt_template": "auto"}
            export_base(folder / method, base, **settings, **cube)
    return folder


def flags(place: Path, method: str) -> tuple[str, str]:
    return "--model", str(place / method / "checkpoint")


def held(place: Path, turns: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """One conversation held again with its prompts, by hand: what is reported of its turns, and of its tokens."""
    folder = place / "na+ksd" / "checkpoint"
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    refusal = model.config.unskill["refusal_token_id"]
    prompts = {"forget": FORGET, "retain": RETAIN, "everyday": [prompt.text for prompt in everyday_prompts()]}

    def ids_of(messages: list[dict[str, str]], ask: bool) -> list[int]:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        return tokenizer(text)["input_ids"]

    messages: list[dict[str, str]] = []
    seen: dict[str, list[Any]] = {"turns": [], "answer": [], "forget": []}
    for turn in turns:
        messages.append({"role": "user", "content": prompts[turn["kind"]][turn["row"] - 1]})
        ids = ids_of(messages, True)
        output = model.generate(torch.tensor([ids]), max_new_tokens=ANSWER, do_sample=False, pad_token_id=0)
        answer = output[0, len(ids) :].tolist()
        answer = answer[: answer.index(2)] if 2 in answer else answer
        refused = answer[:1] == [refusal]
        seen["turns"].append((len(ids) - 1, refused, refusal in answer and not refused))
        messages.append({"role": "assistant", "content": tokenizer.decode(answer, skip_special_tokens=True).strip()})
        whole = ids_of(messages, False)[: -len(tokenizer("<|im_end|>\n")["input_ids"])]
        # Tokens of the turn: those of its prompt, then those of its answer.
        seen["forget"] += [turn["kind"] == "forget"] * (len(whole) - len(seen["forget"]))
        seen["answer"] += [False] * (len(ids) - len(seen["answer"]))
        seen["answer"] += [not refused] * (len(whole) - len(seen["answer"]))
    with torch.no_grad():
        seen["blocked"] = (model(torch.tensor([whole])).logits[0].argmax(-1) == refusal).tolist()
    seen["moved"], seen["z_forget"], seen["z_retain"] = by_definition(folder, model, whole)
    return seen


def by_definition(folder: Path, model: Any, ids: list[int]) -> list[list[float]]:
    """Share of adjusted neurons with d > 0 and u < sigmoid(d), and both mean |z|, at every token; in float64."""
    stored = load_file(sorted(folder.glob("*.safetensors"))[-1])
    taken: dict[int, torch.Tensor] = {}
    for layer, module in enumerate(model.model.layers):
        module.mlp.gate_proj.register_forward_hook(
            lambda module, inputs, output, layer=layer: taken.update({layer: output[0].double().clone()})
        )
    with torch.no_grad():
        model(torch.tensor([ids]))
    context = draw_context(torch.arange(len(ids)), torch.tensor(ids))
    parts: list[list[torch.Tensor]] = [[], [], []]
    for layer, values in taken.items():
        name = f"model.layers.{layer}.mlp.unskill_na_"
        if name + "index" not in stored:
            continue
        mu_f, sd_f, mu_r, sd_r = stored[name + "params"].double()
        chosen = values[:, stored[name + "index"]]
        zf, zr = (chosen - mu_f) / sd_f, (chosen - mu_r) / sd_r
        d = (zr**2 - zf**2) / 2 + (sd_r / sd_f).log()
        draws = uniform_draws(context, stored[name + "key"]).double()
        parts[0].append(((d > 0) & (draws < torch.sigmoid(d))).double())
        parts[1].append(zf.abs())
        parts[2].append(zr.abs())
    return [torch.cat(part, -1).mean(-1).tolist() for part in parts]


def test_a_conversation_is_counted_as_it_was_held(place: Path) -> None:
    numbers = found(place, RECIPE, *flags(place, "na+ksd"))
    turns = numbers["turns"]
    both = [[turn for turn in turns if turn["conversation"] == number] for number in (0, 1)]
    # As many of each kind, as far as a conversation goes, and nothing asked twice.
    for mine in both:
        kinds = [turn["kind"] for turn in mine]
        assert len(mine) >= 6 and all(len(set(kinds[at : at + 3])) == 3 for at in range(0, len(mine) - 2, 3))
    assert len({(turn["kind"], turn["row"]) for turn in turns}) == len(turns)
    assert {turn["refused"] for turn in turns} == {True, False}
    tokens: list[dict[str, Any]] = []
    for mine in both:
        seen = held(place, mine)
        assert [(turn["position"], turn["refused"], turn["cut"]) for turn in mine] == seen["turns"]
        assert [turn["quarter"] for turn in mine] == [quarter_of(turn["position"]) for turn in mine]
        names = [name for name in seen if name != "turns"]
        assert len({len(seen[name]) for name in names}) == 1 and len(seen["moved"]) >= TOKENS
        rows = [dict(zip(names, row, strict=True)) for row in zip(*(seen[name] for name in names), strict=True)]
        tokens += [row | {"quarter": quarter_of(place)} for place, row in enumerate(rows)][1:]
    assert {quarter["quarter"] for quarter in numbers["quarters"]} == {1, 2, 3, 4, None}
    for quarter in numbers["quarters"]:
        asked = [turn for turn in turns if quarter["quarter"] in (None, turn["quarter"])]
        for kind, shares in quarter["refused"].items():
            refused = [turn["refused"] for turn in asked if turn["kind"] == kind]
            assert (shares["hits"], shares["total"]) == (sum(refused), len(refused))
        others = [turn["refused"] for turn in asked if turn["kind"] != "forget"]
        assert (quarter["others_refused"]["hits"], quarter["others_refused"]["total"]) == (sum(others), len(others))
        here = [row for row in tokens if quarter["quarter"] in (None, row["quarter"])]
        answers = [row["blocked"] for row in here if row["answer"]]
        assert (quarter["blocked_positions"], quarter["answer_positions"]) == (sum(answers), len(answers))
        for name in ("moved", "z_forget", "z_retain"):
            sides = {"all": here}
            sides["forget"], sides["others"] = ([row for row in here if row["forget"] is is_] for is_ in (True, False))
            for side, chosen in sides.items():
                expected = math.fsum(row[name] for row in chosen) / len(chosen) if chosen else None
                assert quarter[name][side] == (None if expected is None else pytest.approx(expected, rel=1e-4))
    assert 0 < numbers["quarters"][-1]["moved"]["all"] < 1


def quarter_of(position: int) -> int:
    ends = [TOKENS / 4, TOKENS / 2, TOKENS * 3 / 4]
    return 1 + sum(position >= end for end in ends)


def test_no_text_is_written_and_a_second_run_is_the_same(place: Path) -> None:
    small = RECIPE.replace("conversations = 2", "conversations = 1").replace(str(TOKENS), "300")
    once = found(place, small, *flags(place, "na"))
    assert found(place, small, *flags(place, "na")) == once
    assert found(place, small, *flags(place, "na"), "--seed", "1")["turns"] != once["turns"]
    files = {path.name: path.read_text(encoding="utf-8") for path in (place / "out").iterdir()}
    assert set(files) == {"results.json", "tables.md"}
    assert not any(text[:25] in "".join(files.values()) for text in [*FORGET, *RETAIN]) and str(place) not in str(
        files
    )
    # Neurons alone refuse nothing.
    assert "moved, forget turns" in files["tables.md"] and "refused" not in files["tables.md"]


def test_what_cannot_be_is_one_line(tiny: Callable[..., Exported], place: Path, tmp_path: Path) -> None:
    own = flags(place, "na+ksd")
    with pytest.raises(BadInput, match=r"^model: checkpoint has no chat template"):
        invoke(place, RECIPE.replace(str(TOKENS), "100"), "--model", str(tiny("llama").checkpoint))
    with pytest.raises(BadInput, match=r"^tokens: 5000 are more than the context of checkpoint, 4096$"):
        invoke(place, RECIPE.replace(str(TOKENS), "5000"), *own)
    with pytest.raises(BadInput, match=r"^conversations: 100 forget prompts are too few for 101 of 300 tokens"):
        invoke(place, RECIPE.replace("= 2", "= 101").replace(str(TOKENS), "300"), *own)
    with pytest.raises(BadInput, match="conversations: Input should be greater than 0"):
        invoke(place, RECIPE.replace("= 2", "= 0"), *own)
    # A template that puts the last message first.
    copied = shutil.copytree(place / "na" / "checkpoint", tmp_path / "copied")
    last_first = "{% for message in messages[-1:] + messages[:-1] %}[{{ message['content'] }}]{% endfor %}"
    (copied / "chat_template.jinja").write_text(last_first, encoding="utf-8")
    with pytest.raises(BadInput, match=r"^model: the chat template of copied does not leave earlier turns"):
        invoke(place, RECIPE, "--model", str(copied))
