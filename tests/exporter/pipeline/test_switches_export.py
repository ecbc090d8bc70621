"""A base whose chat template has a switch: the checkpoint refuses in each of its states, and is verified in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.checkpoint.summary import Summary
from exporter.cli.main import cli
from exporter.evaluation.run import evaluate
from exporter.evaluation.settings import EvaluateSettings
from exporter.pipeline.run import export
from exporter.verification.run import VerifySettings, verify
from tests.tiny import CHAT_TEMPLATE, FORGET, RETAIN, edit_json, one_skill, one_thread, tiny_model, write_prompts

END = "<|im_start|>assistant\n"
OFF = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
STATE = '{"enable_thinking": false}'


def exported(folder: Path, **settings: Any) -> Summary:
    base = tiny_model(folder / "base", intermediate_size=256, max_position_embeddings=1024)
    template = CHAT_TEMPLATE.replace(END, END + OFF)
    (base / "chat_template.jinja").write_text(template)
    edit_json(base / "tokenizer_config.json", lambda written: {**written, "chat_template": template})
    sources = write_prompts(folder / "forget.jsonl", FORGET), write_prompts(folder / "retain.jsonl", RETAIN)
    about: dict[str, Any] = {"everyday": False, "dtype": "float32", "quiet": True, "force": True, "layer": 0}
    with one_thread():
        return export(one_skill(base, folder / "out", *sources, **{**about, **settings}), lambda text: None)


def refused(checkpoint: Path, **arguments: Any) -> int:
    """How many forget prompts are refused with these arguments of the template."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    count = 0
    for text in FORGET:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, **arguments
        )
        inputs = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            count += int(model(**inputs).logits[0, -1].argmax()) == model.config.unskill["refusal_token_id"]
    return count


@pytest.mark.parametrize("region", ["hypercube", "discriminant"])
def test_each_state_is_refused(region: str, tmp_path: Path) -> None:
    # In a random model the kinds of turn look alike, so the size is given.
    found = exported(tmp_path, region=region, alpha=5.0 if region == "hypercube" else 0.5)
    assert STATE in found.formats
    key_space = found.skills[0].key_space
    assert key_space is not None and key_space.blocked["forget.jsonl"][STATE].total
    with one_thread():
        default, off = refused(tmp_path / "out"), refused(tmp_path / "out", enable_thinking=False)
        assert min(default, off) > 70 and refused(tmp_path / "out", enable_thinking=True) == default
        # As other commands ask.
        sources = {"forget": (str(tmp_path / "forget.jsonl"),)}
        for given, expected in ((None, default), (STATE, off)):
            folder = tmp_path / f"evaluated {given}"
            settings = EvaluateSettings(str(tmp_path / "out"), folder, sources, quiet=True, template_args=given)
            (task,) = evaluate(settings, lambda text: None)["tasks"]
            assert task["edited"]["refused"]["all"]["hits"] == expected
        asked = ["chat", str(tmp_path / "out"), "--prompt", FORGET[0], "--max-new-tokens", "8", "--json"]
        scores = []
        for given in ([], ["--template-args", STATE]):
            (turn,) = json.loads(CliRunner().invoke(cli, [*asked, *given]).stdout)["turns"]
            scores.append(turn["skills"][0]["score"])
        assert scores[0] != scores[1]
        checks = verify(VerifySettings(str(tmp_path / "out")), lambda text: None)["checks"]
    assert [check for check in checks if check["ok"] is False] == []
    assert f"Covered too: the chat template with `{STATE}`" in (tmp_path / "out" / "README.md").read_text()


def test_states_of_the_users_are_in_the_recipe(tmp_path: Path) -> None:
    given = '{"enable_thinking": 0}'
    found = exported(tmp_path, alpha=5.0, template_args=(given,))
    assert given in found.formats and STATE not in found.formats  # which writes the same
    summary = json.loads((tmp_path / "out" / "reproduce" / "summary.json").read_text())
    assert given in summary["formats"]
    assert "template_args = [" in (tmp_path / "out" / "reproduce" / "recipe.toml").read_text()
