"""Sources given again, and with them the base model: prompts by row and sha256, answers, pre-activations."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import kstest
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.common.errors import BadInput
from exporter.pipeline.run import export
from exporter.recipes.recipe import merged_settings
from exporter.reporting.run import ReportSettings, report
from tests.exporter.reporting.test_report import figures, statistics
from tests.several import HOSTILE, THIRD, Several
from tests.tiny import FORGET, RETAIN, Exported, one_thread, tiny_model, write_prompts

Reported = Callable[..., tuple[Path, dict[str, Any]]]


def test_prompts_are_shown_where_their_sources_are_given(several: Several, reported: Reported) -> None:
    out, numbers = reported(several.checkpoint, forget=(str(several.third),))
    texts = {"songs.jsonl": THIRD, "skill songs <b>": THIRD}
    shown = 0
    for skill in numbers["skills"]:
        for rows in (skill["key_space"] or {"nearest": {}})["nearest"].values():
            for row in rows:
                known = texts.get(row["source"])
                assert row["text"] == (known[row["row"] - 1] if known else None)
                shown += known is not None
    assert shown
    page = (out / "report.html").read_text()
    assert HOSTILE not in page and "&lt;/script&gt;&lt;script&gt;document.title" in page
    assert FORGET[0][10:] not in page and str(several.third.parent) not in page


@pytest.mark.slow
def test_a_source_is_read_as_the_export_read_it(tiny: Callable[..., Exported], reported: Reported) -> None:
    """The export had column=prompt; the report need not be told, even where another column comes first."""
    exported = tiny("llama")
    forget = exported.base.parent / "forget.jsonl"
    for spec in (str(forget), f"{forget},column=prompt", f"{forget},limit=50"):
        _, numbers = reported(exported.checkpoint, forget=(spec,))
        rows = [row for rows in numbers["skills"][0]["key_space"]["nearest"].values() for row in rows]
        ours = [row for row in rows if row["side"] == "forget"]
        limit = 50 if "limit" in spec else 100
        assert [row["text"] for row in ours] == [
            FORGET[row["row"] - 1] if row["row"] <= limit else None for row in ours
        ]


def altered(folder: Path, name: str, texts: list[str]) -> str:
    return str(write_prompts(folder / name, texts))


def test_altered_sources(several: Several, tmp_path: Path) -> None:
    def ask(**sources: tuple[str, ...]) -> None:
        report(ReportSettings(str(several.checkpoint), tmp_path / "out", **sources), lambda text: None)

    changed = altered(tmp_path, "sums.jsonl", [*FORGET[:40], FORGET[40] + " ", *FORGET[41:]])
    with pytest.raises(BadInput, match=r"--forget sums.jsonl: row 41 is not what the export read"):
        ask(forget=(changed,))
    with pytest.raises(BadInput, match=r"--forget sums.jsonl: none of its rows"):
        ask(forget=(altered(tmp_path, "sums.jsonl", FORGET[::-1][:30]),))
    with pytest.raises(
        BadInput, match=r"--forget other.jsonl: is not a source .* are sums.jsonl, songs.jsonl, letters"
    ):
        ask(forget=(altered(tmp_path, "other.jsonl", FORGET),))
    with pytest.raises(BadInput, match=r"--retain songs.jsonl: is not a source"):
        ask(retain=(str(several.third),))
    with pytest.raises(BadInput, match=r"--base: is asked prompts"):
        ask(base=str(several.base))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_files_of_one_name_in_several_skills(tmp_path: Path) -> None:
    """Each with a column of its own: what one skill read out of it is told from what another did."""
    base = tiny_model(tmp_path / "base", chat=False)
    specs = []
    for folder, texts, column in (("a", FORGET, "question"), ("b", RETAIN, "text")):
        (tmp_path / folder).mkdir()
        specs.append(str(write_prompts(tmp_path / folder / "train.jsonl", texts, column)))
    skills = [
        {"name": "sums", "forget": (f"{specs[0]},column=question",), "retain": (f"{specs[1]},column=text",)},
        {"name": "letters", "forget": (f"{specs[1]},column=text",), "retain": (f"{specs[0]},column=question",)},
    ]
    recipe = {"everyday": False, "skill": [skill | {"layer": 1, "alpha": 5.0} for skill in skills]}
    given = {"force": True, "quiet": True, "prompt_template": "{prompt}", "model": str(base)}
    with one_thread():
        export(merged_settings(recipe, {**given, "out": tmp_path / "out"}), lambda text: None)
        numbers = report(
            ReportSettings(str(tmp_path / "out"), tmp_path / "report", forget=tuple(specs)), lambda text: None
        )
    for skill, (forget, harmless) in zip(numbers["skills"], ((FORGET, RETAIN), (RETAIN, FORGET)), strict=True):
        rows = [row for rows in skill["key_space"]["nearest"].values() for row in rows]
        assert rows
        for row in rows:
            assert row["text"] == (forget if row["side"] == "forget" else harmless)[row["row"] - 1]


@pytest.mark.slow
def test_answers_before_and_after(several: Several, reported: Reported) -> None:
    out, numbers = reported(several.checkpoint, base=str(several.base), **several.sources)
    tokenizer = AutoTokenizer.from_pretrained(several.base)
    found = {
        "before": AutoModelForCausalLM.from_pretrained(several.base),
        "after": AutoModelForCausalLM.from_pretrained(several.checkpoint, trust_remote_code=True),
    }
    refusal = found["after"].config.unskill["refusal"]
    rows = [row for skill in numbers["skills"] for row in skill["answers"]]
    assert len(rows) == 3 * 6 and any(row["refused"] for row in rows)
    for row in rows:
        text = {"sums.jsonl": FORGET, "songs.jsonl": THIRD, "letters.jsonl": RETAIN}[row["source"]][row["row"] - 1]
        assert row["prompt"] == text
        for which, model in found.items():
            inputs = tokenizer(text, return_tensors="pt")
            with torch.inference_mode():
                output = model.generate(**inputs, max_new_tokens=64, do_sample=False, pad_token_id=0)
            answer = output[0, inputs["input_ids"].shape[1] :]
            known = answer[answer < len(tokenizer)]
            if which == "after" and row["refused"]:
                assert row[which] == refusal
            else:
                assert row[which] == tokenizer.decode(known, skip_special_tokens=True)
    assert "Answers before and after" in (out / "report.html").read_text()


@pytest.mark.slow
def test_pre_activations_against_their_gaussians(several: Several, reported: Reported) -> None:
    _, numbers = reported(several.checkpoint, base=str(several.base), **several.sources)
    figure, stored = figures(numbers)["pre-activations"], statistics(several.checkpoint, "sums")
    records = json.loads((several.checkpoint / "reproduce" / "prompts.json").read_text())["sums"]
    model, tokenizer = (each.from_pretrained(several.base) for each in (AutoModelForCausalLM, AutoTokenizer))
    edited = AutoModelForCausalLM.from_pretrained(several.checkpoint, trust_remote_code=True)
    seen: dict[int, list[torch.Tensor]] = {}
    for layer, module in enumerate(model.model.layers):
        module.mlp.gate_proj.register_forward_hook(
            lambda module, inputs, output, layer=layer: seen.setdefault(layer, []).append(output[0])
        )
    for record in records["texts.forget.fit"]:
        with torch.inference_mode():
            model(**tokenizer(FORGET[record["row"] - 1], return_tensors="pt"))
    rows = [row for row in figure["rows"] if row["series"] == "forget texts"]
    assert rows and f"{len(records['texts.forget.fit'])} forget texts" in figure["caption"]
    for row in rows:
        layer = row["layer"]
        index = edited.model.layers[layer].mlp.unskill_na_index
        values = torch.cat(seen[layer])[:, index].double()
        mean, deviation = (torch.tensor(stored[f"na.forget.{what}"][layer])[index] for what in ("mean", "deviation"))
        exact = [kstest(each.numpy(), "norm").statistic for each in ((values - mean) / deviation).T]
        assert row["neurons"] == len(index)
        # The distance is looked at in 63 places, so it may be a little less than the exact one.
        assert row["distance"] == pytest.approx(torch.tensor(exact).quantile(0.5).item(), abs=0.016)
        assert row["high"] >= row["distance"]


@pytest.mark.slow
def test_without_the_base_the_page_says_what_to_give(several: Several, reported: Reported) -> None:
    page = (reported(several.checkpoint)[0] / "report.html").read_text()
    assert page.count("is not among the numbers of a checkpoint: --base MODEL") == 1
    given = reported(several.checkpoint, base=str(several.base), **several.sources)[0]
    assert "is not among the numbers" not in (given / "report.html").read_text()


@pytest.mark.slow
def test_the_same_bytes_with_models_too(several: Several, reported: Reported) -> None:
    one, two = (
        reported(several.checkpoint, fresh=fresh, base=str(several.base), **several.sources)[0]
        for fresh in (False, True)
    )
    for name in ("report.json", "report.html"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.slow
def test_another_base(several: Several, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", chat=False, hidden_size=48)
    for base, message in (
        (other, "other: is not the model"),
        (tmp_path / "none", "no such folder"),
    ):
        with pytest.raises(BadInput, match=re.escape(message)):
            report(
                ReportSettings(str(several.checkpoint), tmp_path / "out", base=str(base), **several.sources),
                lambda text: None,
            )
    assert not (tmp_path / "out").exists()
