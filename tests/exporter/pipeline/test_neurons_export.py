"""Exports that change neurons: what is in the checkpoint, what the summary says, several skills and both methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.common.errors import Rejected
from exporter.pipeline.run import export
from exporter.recipes.recipe import merged_settings
from tests.tiny import FORGET, RETAIN, one_skill, one_thread, tiny_model, write_prompts

THIRD = [text.replace("write a short letter to", "sing an old song for") for text in RETAIN]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base") / "tiny", chat=False)


def run(base: Path, out: Path, **changes: Any) -> dict[str, Any]:
    folder = out.parent
    sources = write_prompts(folder / "f.jsonl", FORGET), write_prompts(folder / "r.jsonl", RETAIN)
    chosen = {"everyday": False, "force": True, "quiet": True, "prompt_template": "{prompt}", "beta": 5.0}
    with one_thread():
        return export(one_skill(base, out, *sources, **{**chosen, **changes}), lambda text: None).to_json()


def interventions(out: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted(out.glob("*.safetensors"))[-1])


def load(out: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    return model, AutoTokenizer.from_pretrained(out, trust_remote_code=True)


def logits(out: Path, text: str) -> torch.Tensor:
    model, tokenizer = load(out)
    with torch.inference_mode():
        return model(**tokenizer(text, return_tensors="pt")).logits[0]


def test_adjusted_neurons(base: Path, tmp_path: Path) -> None:
    summary = run(base, tmp_path / "out", method="na", score="effect-size")
    tensors = interventions(tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["unskill"]
    count = int(0.05 * 3 * 64)
    assert summary["neurons_changed"] == count == sum(each["adjusted"] for each in settings["layers"].values())
    statistics = load_file(tmp_path / "out" / "reproduce" / "statistics.safetensors")
    for layer, each in settings["layers"].items():
        index, params = (tensors[f"model.layers.{layer}.mlp.unskill_na_{name}"] for name in ("index", "params"))
        assert len(index) == each["adjusted"]
        rows = [
            statistics[f"skill.na.{side}.{what}"][int(layer), index].float()
            for side in ("forget", "retain")
            for what in ("mean", "deviation")
        ]
        assert torch.equal(params, torch.stack(rows))
    assert settings["refusal_token_id"] is None and settings["base_model"] == "closed"
    assert summary["skills"][0]["neurons"]["beta"] == 5.0 and summary["skills"][0]["key_space"] is None
    base_config = json.loads((base / "config.json").read_text())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == base_config["vocab_size"]


def test_what_is_measured_is_what_ships(base: Path, tmp_path: Path) -> None:
    """The report's rise, from the written checkpoint alone."""
    summary = run(base, tmp_path / "out", method="na", score="effect-size", seed=3)
    records = json.loads((tmp_path / "out" / "reproduce" / "prompts.json").read_text())["skill"]
    model, tokenizer = load(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(base)
    for side, texts in (("forget", FORGET), ("retain", RETAIN)):
        sums = torch.zeros(2, dtype=torch.float64)
        tokens = 0
        for record in records[f"texts.{side}.report"]:
            ids = tokenizer(texts[record["row"] - 1], return_tensors="pt")["input_ids"]
            tokens += ids.shape[1] - 1
            with torch.inference_mode():
                sums += torch.stack([each(input_ids=ids, labels=ids).loss for each in (plain, model)]) * (
                    ids.shape[1] - 1
                )
        found = summary["skills"][0]["neurons"]["texts"][side]
        assert found["tokens"] == tokens
        assert found["base_loss"] == pytest.approx(float(sums[0] / tokens), rel=1e-4)
        assert found["rise"] == pytest.approx(float((sums[1] - sums[0]) / tokens), abs=1e-3)


def test_pruned_neurons_are_zero(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "out", method="sp")
    tensors = interventions(tmp_path / "out")
    assert {name.rsplit(".", 1)[1] for name in tensors} == {"unskill_sp_index"}
    plain = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for name, index in tensors.items():
            plain.get_submodule(name.rsplit(".", 1)[0]).down_proj.weight[:, index] = 0
        tokenizer = AutoTokenizer.from_pretrained(base)
        expected = plain(**tokenizer(FORGET[0], return_tensors="pt")).logits[0]
    torch.testing.assert_close(logits(tmp_path / "out", FORGET[0]), expected, rtol=1e-4, atol=1e-4)


def test_another_seed_draws_otherwise(base: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        run(base, tmp_path / name, method="na", score="effect-size", beta=20.0, seed=seed)
    keys = [
        {name: tensor for name, tensor in interventions(tmp_path / each).items() if name.endswith("key")}
        for each in ("one", "two")
    ]
    shared = [name for name in keys[0] if name in keys[1]]
    assert shared and not any(torch.equal(keys[0][name], keys[1][name]) for name in shared)


def test_expected_draws_know_no_seed(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "out", method="na", score="effect-size", draws="expected")
    model, tokenizer = load(tmp_path / "out")
    inputs = tokenizer(FORGET[0], return_tensors="pt")
    with torch.inference_mode():
        one = model(**inputs).logits
        for layer in model.model.layers:
            if hasattr(layer.mlp, "unskill_na_key"):
                layer.mlp.unskill_na_key.add_(1)
        assert torch.equal(model(**inputs).logits, one)


def test_official(base: Path, tmp_path: Path) -> None:
    """Their sigma and variance, a draw per call from torch's generator, one row at a time, and config.json says so."""
    summary = run(base, tmp_path / "out", method="na", score="signed-mean", compat="official", beta=20.0)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["unskill"]
    assert settings["compat"] == summary["compat"] == "official"
    assert "--compat official" in (tmp_path / "out" / "README.md").read_text()
    statistics = load_file(tmp_path / "out" / "reproduce" / "statistics.safetensors")
    tensors = interventions(tmp_path / "out")
    for name in [name for name in tensors if name.endswith("params")]:
        layer = int(name.split(".")[2])
        index = tensors[name.replace("params", "index")]
        mean, deviation = (
            statistics[f"skill.na.{side}"][layer, index] for side in ("forget.mean", "retain.deviation")
        )
        assert torch.equal(tensors[name][0], mean.float()) and torch.equal(tensors[name][1], mean.float())
        torch.testing.assert_close(tensors[name][3], deviation.square().float())
    model, tokenizer = load(tmp_path / "out")
    inputs = tokenizer(FORGET[0], return_tensors="pt")
    with torch.inference_mode():
        outputs = [model(**inputs).logits for _ in range(12)]
        assert any(not torch.equal(outputs[0], each) for each in outputs)
        with pytest.raises(RuntimeError, match="batches of one row"):
            model(input_ids=inputs["input_ids"].repeat(2, 1))


def test_nothing_within_budget_prints_the_trials_and_writes_nothing(base: Path, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="--max-retain-loss") as error:
        run(base, tmp_path / "out", method="na", max_retain_loss=1e-9, score="signed-mean", beta=50.0, force=False)
    assert len(error.value.summary["skills"][0]["neurons"]["trials"]) == 1
    assert not (tmp_path / "out").exists()


RECIPE = {
    "everyday": False,
    "skill": [
        {"name": "sums", "method": "na+ksd", "beta": 5.0, "score": "effect-size", "layer": 1, "alpha": 5.0},
        {"name": "songs", "method": "ksd", "layer": 1, "alpha": 4.0},
        {"name": "letters", "method": "sp", "beta": 1.0},
    ],
}


def test_several_skills_in_one_checkpoint(base: Path, tmp_path: Path) -> None:
    forget, retain, third = (
        str(write_prompts(tmp_path / f"{name}.jsonl", texts))
        for name, texts in (("f", FORGET), ("r", RETAIN), ("t", THIRD))
    )
    sources = [(forget, retain), (third, forget), (retain, forget)]
    recipe = {**RECIPE}
    recipe["skill"] = [
        {**skill, "forget": (ours,), "retain": (others,)}
        for skill, (ours, others) in zip(RECIPE["skill"], sources, strict=True)
    ]
    common = {"force": True, "quiet": True, "prompt_template": "{prompt}", "model": str(base)}
    with one_thread():
        summary = export(merged_settings(recipe, {**common, "out": tmp_path / "out"}), lambda text: None).to_json()
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["unskill"]
    assert [skill["name"] for skill in settings["skills"]] == ["sums", "songs", "letters"]
    assert settings["layers"]["1"]["cubes"] == 2
    assert sum(each.get("adjusted", 0) for each in settings["layers"].values()) == int(0.05 * 192)
    assert sum(each.get("pruned", 0) for each in settings["layers"].values()) == int(0.01 * 192)
    bounds = interventions(tmp_path / "out")["model.layers.1.mlp.unskill_ksd_bounds"]
    assert bounds.shape == (2, 2, 64)
    # Both hypercubes are of keys with every skill's neurons changed: of the written model's own.
    model, tokenizer = load(tmp_path / "out")
    refusal, hits = settings["refusal_token_id"], 0
    for text in FORGET[:20] + THIRD[:20]:
        with torch.inference_mode():
            hits += int(model(**tokenizer(text, return_tensors="pt")).logits[0, -1].argmax()) == refusal
    assert hits >= 20
    found = {skill["name"]: skill for skill in summary["skills"]}
    assert set(found["sums"]["key_space"]["false_blocks"]) == {"r.jsonl", "skill songs"}
    assert set(found["songs"]["key_space"]["false_blocks"]) == {"f.jsonl", "skill letters"}
    assert found["letters"]["key_space"] is None


def test_texts_of_a_skill_whose_name_begins_with_another(base: Path, tmp_path: Path) -> None:
    forget, retain, third = (
        str(write_prompts(tmp_path / f"{name}.jsonl", texts))
        for name, texts in (("f", FORGET), ("r", RETAIN), ("t", THIRD))
    )
    common = {"method": "sp", "beta": 1.0, "retain": (retain,), "everyday": False}
    skills = [{"name": "maths", "forget": (forget,)}, {"name": "maths: hard", "forget": (third,)}]
    given = {"force": True, "quiet": True, "figures": False, "model": str(base), "out": tmp_path / "out"}
    with one_thread():
        summary = export(merged_settings({**common, "skill": skills}, given), lambda text: None)
    for skill in summary.skills:
        assert skill.neurons is not None and set(skill.neurons.texts) == {"forget", "retain"}
    ours, theirs = (skill.neurons.texts["forget"].base_loss for skill in summary.skills if skill.neurons)
    assert ours != theirs
