"""The model card: its YAML head as the Hub reads it, names that are markup, licences, figures with and without."""

from __future__ import annotations

import copy
import hashlib
import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from exporter.checkpoint.card.metadata import base_model, inherited
from exporter.checkpoint.card.render import render_card
from exporter.checkpoint.card.text import PLACEHOLDER, markdown, named_card, plain
from exporter.checkpoint.summary import Summary
from exporter.checkpoint.verdict import verdict
from exporter.common.errors import BadInput
from exporter.common.extras import EXTRAS
from exporter.models.files import Base
from exporter.pipeline.run import export
from exporter.recipes.settings import ExportSettings, SkillSettings
from tests.tiny import FORGET, FORGET_MORE, RETAIN, one_skill, one_thread, tiny_model, write_prompts

README = MarkdownIt("commonmark").enable(["table", "strikethrough"])
SETTINGS = ExportSettings("base", Path("out"), (SkillSettings(("a.txt",)),))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of both methods, with figures."""
    folder = tmp_path_factory.mktemp("card")
    base = tiny_model(folder / "base", chat=False)
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\nmetrics: [x]\n---\n# Base\n")
    forget = write_prompts(folder / "forget.jsonl", FORGET + FORGET_MORE)
    retain = write_prompts(folder / "retain.jsonl", RETAIN)
    asked = {
        "figures": True,
        "method": "na+ksd",
        "layer": 1,
        "everyday": False,
        "prompt_template": "{prompt}",
        "quiet": True,
    }
    with one_thread():
        export(
            one_skill(base, folder / "out", f"{forget},column=prompt", f"{retain},column=prompt", force=True, **asked),
            lambda text: None,
        )
    return folder / "out"


@pytest.fixture(scope="module")
def summary(made: Path) -> dict[str, Any]:
    return json.loads((made / "reproduce" / "summary.json").read_text())


@pytest.fixture(scope="module")
def render(made: Path, summary: dict[str, Any]) -> Callable[..., str]:
    """render(skill, forget, retain, base, refusal) is the card with these names."""
    code = next(made.glob("modeling_*.py"))

    def rendered(skill: str, forget: str = "f.jsonl", retain: str = "r.txt", base: str = "base", refusal: str = "No!"):
        changed = copy.deepcopy(summary)
        labels = {"forget.jsonl": forget, "retain.jsonl": retain}
        (only,) = changed["skills"]
        only["name"] = skill
        for source in only["sources"]:
            source["label"] = labels[source["label"]]
        for key in ("blocked", "blocked_in_unseen_formats", "false_blocks", "false_blocks_over_answers"):
            only["key_space"][key] = {labels[name]: rate for name, rate in only["key_space"][key].items()}
        changed["warnings"] = [{"code": "overlap", "skill": skill, "message": f"{forget} is like {retain}"}]
        return render_card(
            Base(made.parent / "base", base, None, {}, ()),
            replace(SETTINGS, refusal=refusal),
            Summary.from_json(changed),
            code,
        )

    return rendered


def structure(card: str) -> list[str]:
    """The card's elements less their text; the YAML head is left out."""
    tokens = README.parse(ModelCard(card).text)
    found = []
    for token in tokens:
        found.append(token.type)
        for child in token.children or []:
            if child.type not in ("text", "softbreak"):
                found.append(f"{child.type} {child.attrGet('href')}")
    return found


# What is markup somewhere: in Markdown, in a table's cell, in HTML, in YAML, for the Hub's formulas and mentions.
MARKUP = [
    "|",
    "`",
    "*",
    "_",
    "<b>",
    "</td>",
    "[a](b)",
    "![a](b)",
    "\\",
    "$$",
    "---",
    "\n",
    "# ",
    "- ",
    "1. ",
    "~~",
    "&lt;",
]
MARKUP += [
    "@you",
    "https://a.b",
    "www.a.b",
    "{{ 7 }}",
    "{% x %}",
    ": ",
    "!!python/none",
    "'",
    '"',
    "%",
    "\u202e",
    "\u2028",
]
MARKUP += ["<!--", "-->", "\r", "\t", "]", "[", "(", ")", "> ", "=", "+ ", "a", "é", " ", "null", "\x00", "..."]
NAME = st.lists(st.sampled_from(MARKUP), min_size=1, max_size=6).map("".join).filter(lambda text: plain(text).strip())


@settings(deadline=None, max_examples=60)
@given(name=NAME, forget=NAME, retain=NAME, base=NAME, refusal=NAME)
@example(name="# x", forget="|", retain="---", base="1. a", refusal="](x)")
@pytest.mark.slow
def test_names_are_shown_and_do_nothing(name, forget, retain, base, refusal, render: Callable[..., str]) -> None:
    if forget == retain:
        forget += "2"
    name = plain(name)  # settings take no other
    card = render(name, forget, retain, base, refusal)
    assert structure(card) == structure(render("name", "f.jsonl", "r.txt", "base", "No!"))
    text = "".join(shown(card))
    for each in (name, forget, retain, base.split("/")[-1], refusal):
        assert plain(each) in text
    data = ModelCard(card).data
    assert data.to_dict()["license"] == "apache-2.0"
    assert {result.dataset_name for result in data.eval_results} == {plain(forget), plain(retain)}
    assert all(result.metric_name.startswith(f"{name}: ") for result in data.eval_results)


def shown(card: str) -> list[str]:
    tokens = README.parse(ModelCard(card).text)
    return [child.content for token in tokens for child in token.children or [] if child.type == "text"]


@settings(deadline=None)
@given(text=NAME)
def test_text_as_markdown(text: str) -> None:
    paragraph, cell = markdown(text), f"| a | b |\n|---|---|\n| {markdown(text)} | 7 |\n"
    (inline,) = [token for token in README.parse(paragraph) if token.type == "inline"]
    assert "".join(child.content for child in inline.children) == plain(text)
    assert {child.type for child in inline.children} == {"text"}
    cells = [token.content for token in README.parse(cell) if token.type == "inline"]
    assert len(cells) == 4 and cells[3] == "7"


def test_it_begins_with_the_verdict(made: Path, summary: dict[str, Any]) -> None:
    body = (made / "README.md").read_text().split("\n---\n", 1)[1]
    lines = re.findall(r"^- (.*)$", body.split("## How to load it")[0], re.MULTILINE)
    expected = verdict(Summary.from_json(summary).skills[0])
    assert list(map(html.unescape, lines)) == expected and any("held-out" in line for line in expected)


def test_the_head_as_the_hub_reads_it(made: Path, summary: dict[str, Any]) -> None:
    data = metadata_load(made / "README.md")
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "text-generation"
    assert (data["license"], data["language"]) == ("apache-2.0", ["en"]) and "metrics" not in data
    assert {"arxiv:2503.21730", "custom_code", "neuron-adjust", "key-space-detection"} <= set(data["tags"])
    assert "base_model" not in data and "datasets" not in data  # a folder and files: neither is on the Hub
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "base without one skill"
    assert eval_results_to_model_index(name, results) == data["model-index"]
    (skill,) = summary["skills"]
    found = {(result.metric_type, result.dataset_name): result.metric_value for result in results}
    blocked = skill["key_space"]["blocked"]["forget.jsonl"]["all"]
    assert found["refusal_rate", "forget.jsonl"] == round(blocked["rate"], 4)
    ratio = skill["neurons"]["texts"]["retain"]["perplexity_ratio"]
    assert found["perplexity_ratio", "retain.jsonl"] == round(ratio, 4)
    # The card is what ModelCard makes of it: nothing is lost when a push edits it.
    text = (made / "README.md").read_text()
    assert str(ModelCard(text)) == text


def test_a_base_and_a_dataset_of_the_hub(made: Path, summary: dict[str, Any]) -> None:
    changed = copy.deepcopy(summary)
    (skill,) = changed["skills"]
    skill["name"] = "maths"
    for source in skill["sources"]:
        if source["flag"] == "--forget":
            source |= {"label": "openai/gsm8k", "fingerprint": "c" * 40, "options": {"name": "main", "split": "train"}}
    skill["key_space"]["blocked"] = {"openai/gsm8k": skill["key_space"]["blocked"]["forget.jsonl"]}
    base = Base(made.parent / "base", "some/model", "b" * 40, {}, ())
    card = render_card(base, SETTINGS, Summary.from_json(changed), next(made.glob("modeling_*.py")))
    data = ModelCard(card).data
    assert (data["base_model"], data["base_model_relation"]) == ("some/model", "finetune")
    assert data["datasets"] == ["openai/gsm8k"] and data.model_name == "model without maths"
    result = next(result for result in data.eval_results if result.metric_type == "refusal_rate")
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("openai/gsm8k", "main", "train")
    assert result.dataset_revision == "c" * 40
    assert f"(https://huggingface.co/datasets/openai/gsm8k/tree/{'c' * 40})" in card
    assert "[some/model](https://huggingface.co/some/model)" in card


@pytest.mark.parametrize(
    ("head", "files", "expected"),
    [
        ("license: gemma", (), {"license": "gemma"}),
        ("license: [mit, x]", ("LICENSE",), {"license": ["mit", "x"]}),
        (None, ("LICENSE.txt",), {"license": "other", "license_name": "my-base-1.0-license"}),
        ("tags: [x]", ("LICENSE",), {"license": "other", "license_link": "LICENSE"}),
        ("license: other\nlicense_name: x\nlicense_link: LICENSE", ("LICENSE",), {"license_link": "LICENSE"}),
        (
            "license: other\nlicense_name: x\nlicense_link: docs/TERMS",
            (),
            {"license_link": f"https://huggingface.co/me/My_Base 1.0/blob/{'a' * 40}/docs/TERMS"},
        ),
        ("license: 1", (), {}),
        ("license: no", (), {}),
        ("- a list", (), {}),
        ("license: [", (), {}),
        (None, (), {}),
    ],
)
def test_the_licence_of_the_base(head: str | None, files: tuple[str, ...], expected: dict, tmp_path: Path) -> None:
    if head is not None:
        (tmp_path / "README.md").write_text(f"---\n{head}\n---\ntext\n")
    for name in files:
        (tmp_path / name).write_text("terms")
    found, problem = inherited(Base(tmp_path, "me/My_Base 1.0", "a" * 40, {}, ()))
    assert expected.items() <= found.items() and ("license" in found) == bool(expected)
    assert (problem is not None) == (head in ("- a list", "license: ["))


def test_a_folder_of_licences_is_no_licence(tmp_path: Path) -> None:
    (tmp_path / "LICENSES").mkdir()
    base = Base(tmp_path, "base", None, {}, ())
    assert inherited(base)[0] == {}
    (tmp_path / "LICENSE_MIT.txt").write_text("terms")
    (tmp_path / "LICENSE.d").mkdir()
    assert inherited(base)[0]["license_link"] == "LICENSE_MIT.txt"


@pytest.mark.parametrize(
    ("named", "asked", "expected"),
    [
        (None, None, None),
        ("org/Model-1.5", None, "org/Model-1.5"),
        ("org/Model-1.5", "me/other", "me/other"),
        ("/home/me/model", None, None),
        ("../model", None, None),
        ("a/b/c", None, None),
        ("tests/exporter", None, None),  # a folder that is there
        (["org/model"], None, None),
    ],
)
def test_the_base_of_a_folder(named: Any, asked: str | None, expected: str | None) -> None:
    base = Base(Path("model"), "model", None, {"_name_or_path": named}, ())
    assert base_model(base, asked) == expected
    assert base_model(replace(base, revision="a" * 40, name="org/it"), None) == "org/it"


def test_a_base_model_that_is_no_id() -> None:
    with pytest.raises(BadInput, match=r"--base-model: '\./model' is not the id of a model on the Hub"):
        replace(SETTINGS, base_model="./model")


def test_what_the_card_says_of_the_code(made: Path) -> None:
    card = (made / "README.md").read_text()
    code = next(made.glob("modeling_*.py"))
    digest = hashlib.sha256(code.read_bytes()).hexdigest()
    assert f"\n    {digest}\n" in card and f"`sha256sum {code.name}`" in card
    assert json.loads((made / "reproduce" / "hashes.json").read_text())[code.name] == digest
    for command in ("verify", "restore"):
        assert f"unskill {command} {PLACEHOLDER}" in card
    assert f'checkpoint = "{PLACEHOLDER}"' in card
    assert "the base model's own family (`LlamaForCausalLM`)" in card and "handed to `AutoModelForCausalLM`" in card


def test_what_the_card_says_of_hashes(made: Path, summary: dict[str, Any]) -> None:
    base, code = Base(made.parent / "base", "base", None, {}, ()), next(made.glob("modeling_*.py"))
    without = render_card(base, replace(SETTINGS, fingerprints=False), Summary.from_json(summary), code)
    for text in ("all other files", "sha256 of all files"):
        assert f"{text} but the base's weights" in without
        assert text in (made / "README.md").read_text()
    assert "but the base's weights" not in (made / "README.md").read_text()


def test_card_is_named_and_named_again(made: Path) -> None:
    card = (made / "README.md").read_text()
    named = named_card(card, "me/model")
    assert PLACEHOLDER not in named and named.count("me/model") == card.count(PLACEHOLDER) == 4
    assert named_card(named, "you/me-model.2") == named_card(card, "you/me-model.2")
    assert named_card("# A card of a person\n", "me/model") == "# A card of a person\n"


def test_figures_and_their_alternative_texts(made: Path) -> None:
    tokens = README.parse((made / "README.md").read_text())
    images = [child for token in tokens for child in token.children or [] if child.type == "image"]
    assert {str(image.attrGet("src")) for image in images} == {
        f"figures/{path.name}" for path in (made / "figures").iterdir()
    }
    assert len(images) == 4 and all(len(image.content) > 20 for image in images)
    assert all((made / str(image.attrGet("src"))).read_bytes().startswith(b"\x89PNG") for image in images)
    hashes = json.loads((made / "reproduce" / "hashes.json").read_text())
    assert all(str(image.attrGet("src")) in hashes for image in images)


@pytest.mark.parametrize("wanted", [True, False])
def test_without_figures(wanted: bool, made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None are asked for, or the packages for them are not there, which a remark says."""
    monkeypatch.setitem(EXTRAS, "report", {"no_such_module": "its-package"})
    forget = write_prompts(tmp_path / "forget.jsonl", FORGET)
    retain = write_prompts(tmp_path / "retain.jsonl", RETAIN)
    asked = {
        "layer": 1,
        "alpha": 5.0,
        "everyday": False,
        "prompt_template": "{prompt}",
        "quiet": True,
        "force": True,
    }
    said: list[str] = []
    with one_thread():
        export(one_skill(made.parent / "base", tmp_path / "out", forget, retain, figures=wanted, **asked), said.append)
    assert (
        any("no figures, which needs the package its-package: pip install its-package" in text for text in said)
        == wanted
    )
    assert not (tmp_path / "out" / "figures").exists()
    assert "![" not in (tmp_path / "out" / "README.md").read_text()
