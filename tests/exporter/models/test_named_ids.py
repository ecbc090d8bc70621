"""Ids that a model's files name and its tokenizer writes: every one is a token with a row, or one line says which is
not, before any forward."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.common.errors import BadInput
from exporter.models.files import find_base
from exporter.models.loading import LoadedModel, load
from exporter.models.named_ids import end_ids, problems
from tests.tiny import CHAT_TEMPLATE, edit_json, tiny_model

ROWS = 8
TOKENS = {0: "<pad>", 1: "<s>", 2: "</s>", 5: "a", 9: "[PAD]"}  # 3, 4, 6, 7 are rows alone, 9 is a token alone
SOUND = [0, 1, 2, 5]
ODD = [
    -1,
    -8,
    3,
    7,
    8,
    9,
    99999,
    10**30,
    True,
    False,
    2.0,
    0.5,
    float("nan"),
    "2",
    "",
    {},
    {"2": 2},
    [2],
    [[2]],
    [None],
]
KEYS = ("eos_token_id", "pad_token_id", "bos_token_id")
FILES = ("config.json", "generation_config.json")


def found(config: dict[str, Any], generation: dict[str, Any] | None = None) -> list[str]:
    return list(problems(config, generation or {}, TOKENS, ROWS))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("place", [0, 1], ids=FILES)
@pytest.mark.parametrize("value", [each for each in ODD if not isinstance(each, list)], ids=repr)
def test_every_odd_value_is_named_with_its_file_and_key(key: str, place: int, value: Any) -> None:
    both: list[dict[str, Any]] = [{"eos_token_id": 2}, {"eos_token_id": 2}]
    both[place][key] = value
    (problem,) = found(*both)
    assert problem.startswith(f"{FILES[place]}: {key} ") and len(problem) < 200


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_every_odd_value_in_a_list_of_eos(value: Any) -> None:
    (problem,) = found({"eos_token_id": 2}, {"eos_token_id": [2, value, 1]})
    assert problem.startswith("generation_config.json: eos_token_id ")


@pytest.mark.parametrize("key", ["pad_token_id", "bos_token_id"])
def test_only_eos_may_be_several(key: str) -> None:
    assert "not a whole number" in found({"eos_token_id": 2, key: [0]})[0]


@pytest.mark.parametrize(
    ("config", "generation"), [({}, {}), ({"eos_token_id": None}, {"eos_token_id": None}), ({"pad_token_id": 0}, {})]
)
def test_at_least_one_eos(config: dict[str, Any], generation: dict[str, Any]) -> None:
    (problem,) = found(config, generation)
    assert problem.startswith("no eos_token_id in generation_config.json or config.json")


@pytest.mark.parametrize("where", [0, 1], ids=FILES)
def test_an_empty_list_is_none(where: int) -> None:
    both: list[dict[str, Any]] = [{"eos_token_id": 2}, {"eos_token_id": 2}]
    both[where]["eos_token_id"] = []
    assert found(*both) == [f"{FILES[where]}: eos_token_id is an empty list; name the token that ends an answer"]


def test_a_token_without_a_row_is_named() -> None:
    assert "9 ('[PAD]') has no row, the model has 8" in found({"eos_token_id": 2, "pad_token_id": 9})[0]


ids = st.sampled_from(SOUND)
ends = st.none() | ids | st.lists(ids, min_size=1)
files = st.fixed_dictionaries(
    {}, optional={"eos_token_id": ends, "pad_token_id": st.none() | ids, "bos_token_id": ids}
)


@given(config=files, generation=files)
def test_sound_files_have_no_problem_and_their_ends_are_whose_turn_it_is(
    config: dict[str, Any], generation: dict[str, Any]
) -> None:
    first = next((each for each in (generation.get(KEYS[0]), config.get(KEYS[0])) if each is not None), None)
    expected = first if isinstance(first, list) else [] if first is None else [first]
    assert end_ids(config, generation) == expected
    assert len(found(config, generation)) == (not expected)


@given(config=files, place=st.sampled_from([0, 1]), key=st.sampled_from(KEYS), value=st.sampled_from(ODD))
def test_nothing_odd_passes_beside_anything_sound(config: dict[str, Any], place: int, key: str, value: Any) -> None:
    if value == [2] and key == "eos_token_id":
        return
    both = [{**config}, {**config}]
    both[place][key] = value
    assert any(each.startswith(f"{FILES[place]}: {key} ") for each in found(*both))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("ids") / "base")


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("padded") / "base", padding_rows=3)


@pytest.fixture
def base(tiny: Path, tmp_path: Path) -> Path:
    """Of 400 tokens and as many rows."""
    return Path(shutil.copytree(tiny, tmp_path / "base"))


@pytest.fixture
def rows_to_spare(padded: Path, tmp_path: Path) -> Path:
    """With three rows that are no tokens."""
    return Path(shutil.copytree(padded, tmp_path / "base"))


def loaded(folder: Path) -> LoadedModel:
    return load(find_base(str(folder)), "auto", "cpu", threads=1)


def set_in(base: Path, name: str, **values: Any) -> None:
    path = base / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def add_token(base: Path, content: str, id_: int) -> None:
    """An added token, as tools append them without a thought of the embedding."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    entry = {"id": id_, "content": content, "special": True, **flags}
    edit_json(base / "tokenizer.json", lambda old: {**old, "added_tokens": [*old["added_tokens"], entry]})


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [-1, -500, 400, 402, 403, 99999, 10**30, True, 2.0, "2", {}, [[2]]], ids=repr)
def test_no_model_with_an_odd_id_is_loaded(rows_to_spare: Path, name: str, key: str, value: Any) -> None:
    set_in(rows_to_spare, name, **{key: value})
    with pytest.raises(BadInput, match=r"^MODEL base") as refused:
        loaded(rows_to_spare)
    assert key in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["[]", "2", "{", "", '{"eos_token_id": ' + "9" * 5000 + "}"])
def test_a_generation_config_that_is_no_object(base: Path, content: str) -> None:
    (base / "generation_config.json").write_text(content)
    with pytest.raises(BadInput, match=r"generation_config\.json is not"):
        loaded(base)


def test_an_eos_that_is_only_a_default_of_the_class(base: Path) -> None:
    edit_json(base / "config.json", lambda old: {key: each for key, each in old.items() if key != "eos_token_id"})
    (base / "generation_config.json").unlink()
    with pytest.raises(BadInput, match="no eos_token_id"):
        loaded(base)


@pytest.mark.parametrize("generation", [None, {}, {"eos_token_id": None}, {"eos_token_id": [1, 2]}])
def test_ends_of_a_loaded_model(base: Path, generation: dict[str, Any] | None) -> None:
    (base / "generation_config.json").unlink()
    if generation is not None:
        (base / "generation_config.json").write_text(json.dumps(generation))
    assert loaded(base).eos_ids == ((generation or {}).get("eos_token_id") or [2])


ROLE = "<|im_start|>{{ message['role'] }}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<|im_start|>assistant", "<|new|>"),
        (ROLE, "{% if message['role'] == 'system' %}<|new|>{% endif %}" + ROLE),
        (ROLE, "{% if message['role'] == 'assistant' %}<|new|>{% endif %}" + ROLE),
        ("{% for message in messages %}", "<|new|>{% for message in messages %}"),
        ("{% for message in messages %}", "{{ bos_token }}{% for message in messages %}"),
    ],
    ids=["prompt", "system", "answer", "beginning", "bos"],
)
def test_a_token_of_the_chat_template_without_a_row(base: Path, old: str, new: str) -> None:
    add_token(base, "<|new|>", 400)
    template = CHAT_TEMPLATE.replace(old, new)
    assert template != CHAT_TEMPLATE
    (base / "chat_template.jinja").write_text(template)
    set_in(base, "tokenizer_config.json", chat_template=template)
    if "bos" in new:
        set_in(base, "tokenizer_config.json", bos_token="<|new|>")
    with pytest.raises(BadInput, match=r"^MODEL base: the chat template writes token '<\|new\|>' \(400\)"):
        loaded(base)


def test_a_token_without_a_row_that_the_tokenizer_adds(base: Path) -> None:
    add_token(base, "<|new|>", 400)
    special = {"<|new|>": {"id": "<|new|>", "ids": [400], "tokens": ["<|new|>"]}}
    first = [{"SpecialToken": {"id": "<|new|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    step = {"type": "TemplateProcessing", "single": first, "pair": first, "special_tokens": special}
    edit_json(base / "tokenizer.json", lambda old: {**old, "post_processor": step})
    with pytest.raises(BadInput, match=r"the tokenizer writes token '<\|new\|>' \(400\)"):
        loaded(base)


def test_tokens_without_a_row_that_nothing_writes(base: Path) -> None:
    """As <image_soft_token> of the text-only Gemma 3 models, or a pad token that was added and never given a row."""
    add_token(base, "<|image|>", 400)
    add_token(base, "[PAD]", 401)
    set_in(base, "tokenizer_config.json", pad_token="[PAD]")
    found = loaded(base)
    assert found.lost_pad == "[PAD]" and found.pad_id == 2
    inputs = found.pad([[5, 6, 7], [5]], "left")
    assert int(inputs["input_ids"].max()) < found.files.rows
    with pytest.raises(BadInput, match=r"token '<\|image\|>' \(400\)"):
        found.pad([[5], [6, 400]], "left")


def test_a_pad_token_with_a_row_is_taken(base: Path) -> None:
    found = loaded(base)
    assert found.lost_pad is None and found.pad_id == 0
