"""`unskill evaluate` on tiny checkpoints: every figure against the model asked directly, one item at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.common.errors import BadInput
from exporter.common.text import unheard
from exporter.evaluation.comparison import summarised
from exporter.evaluation.plan import make_task, read_source
from exporter.evaluation.scoring import introduction, question_text
from exporter.models.loading import load_checkpoint
from tests.exporter.evaluation.evaluating import QUESTIONS, TEXTS, evaluated, task
from tests.tiny import BETA, FORGET, LAYER, RETAIN, Exported, export_base, one_thread, tiny_model


@pytest.fixture(scope="module")
def found(
    exported: Exported, sources: dict[str, tuple[str, ...]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("found") / "out"
    # The examples are the questions themselves: what matters is that both sides read the same text.
    return evaluated(exported, out, sources, shots=sources["choice"][0]), out


def load(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def logits(model: Any, tokenizer: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(ids).logits[0], ids[0]


def test_refusals_are_those_of_the_model(
    exported: Exported, found: tuple[dict[str, Any], Path], sources: dict[str, tuple[str, ...]]
) -> None:
    model, tokenizer = load(exported.checkpoint)
    refusal = model.config.unskill["refusal_token_id"]
    for kind, texts in (("forget", FORGET[:12]), ("retain", RETAIN[:12])):
        direct = sum(int(logits(model, tokenizer, text)[0][-1].argmax()) == refusal for text in texts)
        got = task(found[0], kind)["edited"]["refused"]["all"]
        assert (got["hits"], got["total"]) == (direct, 12)
    assert task(found[0], "forget")["edited"]["refused"]["all"]["hits"] > 0
    assert "base" not in task(found[0], "forget")


def test_perplexity_is_that_of_texts_without_a_blocked_position(
    exported: Exported, found: tuple[dict[str, Any], Path]
) -> None:
    models = [load(exported.base), load(exported.checkpoint)]
    refusal = models[1][0].config.unskill["refusal_token_id"]
    texts = TEXTS
    totals, tokens, blocked = [0.0, 0.0], 0, 0
    for text in texts:
        edited, ids = logits(*models[1], text)
        hits = int((edited[:-1].argmax(-1) == refusal).sum())
        if hits:
            blocked += 1
            continue
        tokens += len(ids) - 1
        for place, (model, tokenizer) in enumerate(models):
            own, _ = logits(model, tokenizer, text)
            totals[place] += float(torch.nn.functional.cross_entropy(own[:-1], ids[1:], reduction="sum"))
    got = task(found[0], "text")
    assert got["edited"]["overwritten"]["items"] == blocked
    assert got["edited"]["tokens"] == tokens > 0
    assert got["edited"]["loss"] == pytest.approx(totals[1] / tokens, rel=1e-5)
    # The base's figure stands beside it, so it is of the same texts, though the base blocks none.
    assert blocked and got["base"]["tokens"] == tokens
    assert got["base"]["loss"] == pytest.approx(totals[0] / tokens, rel=1e-5)
    assert got["difference"]["mean"] == pytest.approx((totals[1] - totals[0]) / tokens, abs=1e-5)


def test_choices_are_those_of_the_whole_text(exported: Exported, found: tuple[dict[str, Any], Path]) -> None:
    """Examples read once for a subject change nothing against reading them before every question."""
    lines = (found[1] / "choice-choices_jsonl.edited.jsonl").read_text().splitlines()
    records = {json.loads(line)["row"]: json.loads(line) for line in lines[1:]}
    model, tokenizer = load(exported.checkpoint)
    letters = [tokenizer(f"x {letter}")["input_ids"][-1] for letter in "ABC"]
    refusal = model.config.unskill["refusal_token_id"]
    for row, question in enumerate(QUESTIONS, start=1):
        shots = [each for each in QUESTIONS if each["subject"] == question["subject"]][:5]
        text = introduction(question["subject"])
        text += "".join(f"{asked(each)} {'ABC'[each['answer']]}\n\n" for each in shots) + asked(question)
        own, ids = logits(model, tokenizer, f"{text} A")
        assert ids[-1] == letters[0]
        # This tokenizer writes " A" as two tokens: after the text and after the space something is read.
        refused = refusal in own[-3:-1].argmax(-1).tolist()
        chosen = None if refused else int(own[-2, letters].argmax())
        record = records[row]
        assert (record["refused"], record["chosen"]) == (refused, chosen)
        assert record["correct"] is (chosen == 2)


def test_overwritten_positions_of_texts(exported: Exported, found: tuple[dict[str, Any], Path]) -> None:
    model, tokenizer = load(exported.checkpoint)
    refusal = model.config.unskill["refusal_token_id"]
    read = [(logits(model, tokenizer, text)[0][:-1].argmax(-1) == refusal).tolist() for text in TEXTS]
    direct = {"positions": sum(map(sum, read)), "of": sum(map(len, read)), "items": sum(map(any, read))}
    got = task(found[0], "text")
    assert got["edited"]["overwritten"] == direct and 0 < direct["positions"] < direct["of"]
    assert got["base"]["overwritten"] == direct | {"positions": 0, "items": 0}
    # Nothing is scored where a model is only asked.
    assert not any("overwritten" in task(found[0], kind)["edited"] for kind in ("forget", "retain", "gsm8k"))


def test_overwritten_positions_of_choices(exported: Exported, sources: dict[str, tuple[str, ...]]) -> None:
    """None of the checkpoint as it is; then its hypercubes are put around the end of one question."""
    loaded = load_checkpoint(str(exported.checkpoint), "float32", "cpu")
    spec = sources["choice"][0]
    choices = make_task(loaded, loaded.formatter("{prompt}"), read_source("choice", spec, None, None, 0, unheard))
    mlp, keys = loaded.model.model.layers[LAYER["llama"]].mlp, []

    def direct() -> list[int]:
        """Of each question, among the two positions at which its letter is expected, see above."""
        with torch.no_grad():
            whole = [loaded.model(torch.tensor([ids])).logits[0, -2:].argmax(-1) for ids in choices.ids]
        return [int((each == loaded.refusal_id).sum()) for each in whole]

    def scored() -> dict[str, Any]:
        results = [each for row in range(len(choices.items)) for each in choices.run(loaded, [row])]
        assert [each["blocked_positions"] for each in results] == direct()
        return summarised(choices, {"edited": results})["edited"]

    with one_thread():
        before = scored()
        hook = mlp.down_proj.register_forward_pre_hook(lambda module, args: keys.append(args[0][0, -1]))
        loaded.model(torch.tensor([choices.ids[2]]))
        hook.remove()
        mlp.unskill_ksd_bounds.copy_(torch.stack([keys[0] - 1e-3, keys[0] + 1e-3]))
        after = scored()
    count = 2 * len(QUESTIONS)
    assert before["overwritten"] == {"positions": 0, "of": count, "items": 0}
    assert after["overwritten"] == {"positions": 1, "of": count, "items": 1}
    assert after["refused"]["hits"] == 1


def asked(question: dict[str, Any]) -> str:
    from exporter.evaluation.items import Item

    return question_text(Item("", 1, question))


def test_answers_are_those_of_generate(exported: Exported, found: tuple[dict[str, Any], Path]) -> None:
    lines = (found[1] / "gsm8k-sums_jsonl.edited.jsonl").read_text().splitlines()
    model, tokenizer = load(exported.checkpoint)
    for line in lines[1:]:
        record = json.loads(line)
        inputs = tokenizer(f"{record['row'] - 1} + 2 =", return_tensors="pt")
        room = 7  # of the prompt with the most tokens, in the context of 256
        output = model.generate(**inputs, max_new_tokens=256 - room, do_sample=False, pad_token_id=0)
        written = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        # The record leaves out what stands after EOS; where another was refused first, both read the same.
        assert record["answer"] == written
    assert task(found[0], "gsm8k")["edited"]["correct"]["total"] == 6


@pytest.mark.slow
def test_the_authors_code_has_one_row_at_a_time_and_the_same_draws(
    sources: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    base = tiny_model(tmp_path / "base", chat=False)
    official = export_base(tmp_path, base, method="na", compat="official", beta=BETA, score="signed-mean")
    few = {name: sources[name] for name in ("text", "gsm8k")}
    first, again = (evaluated(official, tmp_path / name, few) for name in ("first", "again"))
    assert first == again
    rise = task(first, "text")["difference"]
    assert rise["texts"] == len(TEXTS) and rise["mean"] != 0


def test_an_answer_is_lost_where_its_own_loss_rises(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", chat=False)
    adjusted = export_base(tmp_path, base, method="na", beta=BETA, score="effect-size")
    rows = [{"prompt": FORGET[row], "answer": RETAIN[row][: 10 + row]} for row in range(20)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = task(evaluated(adjusted, tmp_path / "out", {"text": (f"{path},column=prompt,answer=answer",)}), "text")
    models = [load(base), load(adjusted.checkpoint)]
    lost = 0
    for row in rows:
        losses = []
        for model, tokenizer in models:
            own, ids = logits(model, tokenizer, f"{row['prompt']}\n{row['answer']}")
            start = len(tokenizer(f"{row['prompt']}\n")["input_ids"])
            losses.append(float(torch.nn.functional.cross_entropy(own[start - 1 : -1], ids[start:])))
        lost += losses[1] - losses[0] >= 0.5
    assert 0 < lost < 20
    assert (found["difference"]["dropped"]["hits"], found["difference"]["dropped"]["total"]) == (lost, 20)


def test_against_an_earlier_evaluation(
    exported: Exported, sources: dict[str, tuple[str, ...]], found: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    summary = evaluated(exported, tmp_path / "out", {"forget": sources["forget"]}, against=found[1], limit=6)
    got = summary["tasks"][0]["against"]
    assert got["items"] == 6
    assert got["only_first"] == got["only_second"] == 0
    with pytest.raises(BadInput, match="--against"):
        evaluated(exported, tmp_path / "other", {"retain": sources["forget"]}, against=found[1])
