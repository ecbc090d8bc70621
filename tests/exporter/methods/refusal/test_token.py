"""R in tiny tokenizers of the forms that models have: byte-level, with ignore_merges too, and SentencePiece's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from exporter.common.errors import BadInput
from exporter.methods.refusal.token import RefusalToken, check_tokenizer, plan_refusal, write_tokenizer

MESSAGE = "Your query is not valid"
CHAT = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>{% endfor %}"
CORPUS = [
    "Your query is not valid. Is your query valid? What is 2 + 2?\n\n\tThe answer is not 42, it's 4.",
    "def f(x):\n    return x ** 2  # Ärger, naïve, мир, 世界, 🙂",
    "Query valid Query valid not valid is not valid your query is",
    "query\nquery\nquery",
] * 20
Exported = tuple[Any, Any, RefusalToken]
SPECIAL = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>"]


def byte_level(ignore_merges: bool = False, inside: bool = False) -> Tokenizer:
    """As GPT-2, Qwen and Llama 3: special tokens inside the vocabulary (SmolLM2) or added after it (Qwen, Llama 3)."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    split = Regex(r"'s|'t| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL if inside else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    if ignore_merges:  # Llama 3 begins with BOS
        tokenizer.post_processor = bos_first(tokenizer)
    return tokenizer


def sentencepiece(prepend: bool) -> Tokenizer:
    """As Gemma (spaces replaced) and Llama 2 (and one put in front): byte fallback, BOS added by a template."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prepend else space
    trainer = BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    # Trained on words, as SentencePiece does: over whole lines it would merge the message into one token.
    tokenizer.train_from_iterator([word for line in CORPUS for word in line.split()], trainer)
    tokenizer.add_special_tokens(SPECIAL)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prepend else steps)
    tokenizer.post_processor = bos_first(tokenizer)
    return tokenizer


def bos_first(tokenizer: Tokenizer) -> Any:
    return processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )


FORMS: dict[str, Callable[[], Tokenizer]] = {
    "smollm": lambda: byte_level(inside=True),
    "qwen": byte_level,
    "llama-3": lambda: byte_level(ignore_merges=True),
    "gemma": lambda: sentencepiece(prepend=False),
    "llama-2": lambda: sentencepiece(prepend=True),
}


def save(tokenizer: Tokenizer, folder: Path, **more: Any) -> Path:
    """A base folder, with its tokenizer as 4.x and 5.x write it and what tools leave in it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "TokenizersBackend",
        "backend": "tokenizers",
        "is_local": True,
        "name_or_path": "/home/somebody/models/base",
        "vocab_file": "/home/somebody/models/base/tokenizer.model",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "extra_special_tokens": ["<|user|>", "<|assistant|>"],
        "model_max_length": 512,
        "padding_side": "left",
        **more,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def plan(folder: Path, rows: int | None = None, text: str = MESSAGE) -> RefusalToken:
    tokenizer = read(folder / "tokenizer.json")
    tokens = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]} | tokenizer["model"]["vocab"]
    return plan_refusal(tokenizer, max(tokens.values()) + 1 if rows is None else rows, text)


def export(folder: Path, out: Path, rows: int | None = None, text: str = MESSAGE) -> Exported:
    """Plan, write and check; returns the base's tokenizer, the written one and R."""
    token = plan(folder, rows, text)
    base = AutoTokenizer.from_pretrained(folder)
    out.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, out, token, base)
    written = PreTrainedTokenizerFast.from_pretrained(out)
    check_tokenizer(base, written, token)
    return base, written, token


@pytest.fixture(scope="module", params=FORMS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp(request.param)
    save(FORMS[request.param](), folder / "base", chat_template=CHAT)
    return export(folder / "base", folder / "out")


# --- the whole way, on every form


def test_r_prints_the_message_and_follows_the_last_token(exported: Exported) -> None:
    base, written, token = exported
    assert (token.id, token.added_row) == (len(base), True)
    assert written.decode([token.id, written.eos_token_id], skip_special_tokens=True) == MESSAGE
    assert written.decode([*base("So: ", add_special_tokens=False)["input_ids"], token.id]).endswith(MESSAGE)


words = st.sampled_from([*MESSAGE.split(), MESSAGE, "▁", "Ġ", " ", "\n", ".", "7", *SPECIAL, "<think>"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(), st.lists(words).map("".join), st.lists(st.one_of(words, st.text())).map(" ".join)))
def test_no_text_encodes_to_r_and_all_ids_are_the_bases(exported: Exported, text: str) -> None:
    base, written, token = exported
    text = text.encode("utf-8", "ignore").decode()
    for special in (True, False):
        ids = written(text, add_special_tokens=special)["input_ids"]
        assert token.id not in ids
        assert ids == base(text, add_special_tokens=special)["input_ids"]


def test_the_chat_history_after_a_refusal_does_not_hold_r(exported: Exported) -> None:
    _, written, token = exported
    history = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": MESSAGE}]
    assert MESSAGE in written.apply_chat_template(history, tokenize=False)
    assert token.id not in written(written.apply_chat_template(history, tokenize=False))["input_ids"]


# --- plan_refusal


def test_plan_spells_the_message_in_the_tokenizers_alphabet(tmp_path: Path) -> None:
    bytes_, pieces = save(byte_level(), tmp_path / "bytes"), save(sentencepiece(True), tmp_path / "pieces")
    assert plan(bytes_).piece == "YourĠqueryĠisĠnotĠvalid"
    assert plan(pieces).piece == "Your▁query▁is▁not▁valid"
    assert plan(bytes_, text="Ungültige 查询 🙂").piece.startswith("UngÃ¼ltigeĠ")


def test_plan_takes_a_padding_row_where_the_base_has_one(tmp_path: Path) -> None:
    folder = save(byte_level(), tmp_path / "base")
    tokens = len(AutoTokenizer.from_pretrained(folder))
    assert plan(folder, tokens + 7) == RefusalToken(MESSAGE, "YourĠqueryĠisĠnotĠvalid", tokens, added_row=False)
    _, written, token = export(folder, tmp_path / "out", tokens + 7)
    assert written.decode([token.id]) == MESSAGE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        (" No way", "space"),
        ("No way ", "space"),
        ("No\nway", "one line"),
        ("No\u2028way", "one line"),
        ("No \ud83d way", "control"),
        ("query", "choose at least two words"),
        ("<think>", "choose at least two words"),
    ],
)
def test_plan_refuses_a_message_by_name_of_the_flag(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        plan(save(byte_level(), tmp_path), text=text)
    assert "--refusal" in str(caught.value)


def test_plan_refuses_a_single_word_that_ignore_merges_would_look_up(tmp_path: Path) -> None:
    assert plan(save(byte_level(), tmp_path / "qwen"), text="Untauglich").piece == "Untauglich"
    with pytest.raises(BadInput, match="choose at least two words"):
        plan(save(byte_level(ignore_merges=True), tmp_path / "llama-3"), text="Untauglich")


def test_plan_refuses_the_space_sign_of_a_sentencepiece_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="▁"):
        plan(save(sentencepiece(False), tmp_path), text="No▁way, no")


def test_plan_refuses_unigram_and_wordpiece_and_other_decoders_by_name(tmp_path: Path) -> None:
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    with pytest.raises(BadInput, match="Unigram"):
        plan_refusal(json.loads(unigram.to_str()), 10, MESSAGE)
    with pytest.raises(BadInput, match="WordPiece"):
        plan_refusal(json.loads(Tokenizer(models.WordPiece({"[UNK]": 0})).to_str()), 10, MESSAGE)
    clip = byte_level()
    clip.decoder = decoders.BPEDecoder("</w>")
    with pytest.raises(BadInput, match="neither byte-level"):
        plan_refusal(json.loads(clip.to_str()), 1000, MESSAGE)


def test_plan_refuses_a_vocabulary_larger_than_the_model(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="beyond"):
        plan(save(byte_level(inside=True), tmp_path), rows=100)


# --- what is written


def test_an_added_token_without_a_row_makes_room_for_r(tmp_path: Path) -> None:
    """The text-only Gemma 3 models have <image_soft_token> = 262144 in the tokenizer and 262144 rows."""
    tokenizer = sentencepiece(False)
    rows = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(["<image>"])
    folder = save(tokenizer, tmp_path / "base", extra_special_tokens={"image_token": "<image>"})
    base, written, token = export(folder, tmp_path / "out", rows)
    assert (base.convert_tokens_to_ids("<image>"), token.id) == (rows, rows)
    assert written.decode([rows]) == MESSAGE
    assert rows not in written("an <image> here")["input_ids"]


def test_added_tokens_keep_their_ids_although_r_lengthens_the_vocabulary(tmp_path: Path) -> None:
    base, written, token = export(save(byte_level(), tmp_path / "base"), tmp_path / "out")
    assert set(SPECIAL).isdisjoint(read(tmp_path / "base/tokenizer.json")["model"]["vocab"])
    assert read(tmp_path / "out/tokenizer.json")["model"]["vocab"]["<think>"] == base.convert_tokens_to_ids("<think>")
    assert written.get_vocab() == base.get_vocab() | {token.piece: token.id}
    assert all(token.piece not in merge for merge in read(tmp_path / "out/tokenizer.json")["model"]["merges"])


def test_the_settings_are_those_of_every_release_and_hold_no_paths(tmp_path: Path) -> None:
    folder = save(byte_level(), tmp_path / "base", auto_map={"AutoTokenizer": "x.Y"}, add_bos_token=True)
    (folder / "vocab.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    export(folder, tmp_path / "out")
    written = read(tmp_path / "out/tokenizer_config.json")
    assert written == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_max_length": 512,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "additional_special_tokens": ["<|user|>", "<|assistant|>"],
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_chat_template_in_its_own_file_goes_into_the_settings_too(tmp_path: Path) -> None:
    folder = save(byte_level(), tmp_path / "base", chat_template="an older one")
    (folder / "chat_template.jinja").write_text(CHAT)
    export(folder, tmp_path / "out")
    assert (tmp_path / "out/chat_template.jinja").read_text() == CHAT
    assert read(tmp_path / "out/tokenizer_config.json")["chat_template"] == CHAT


def test_several_chat_templates_are_kept(tmp_path: Path) -> None:
    folder = save(byte_level(), tmp_path / "base")
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").write_text(CHAT)
    (folder / "additional_chat_templates/tools.jinja").write_text("tools")
    base, written, _ = export(folder, tmp_path / "out")
    assert written.chat_template == base.chat_template == {"default": CHAT, "tools": "tools"}
    named = read(tmp_path / "out/tokenizer_config.json")["chat_template"]
    assert {entry["name"]: entry["template"] for entry in named} == base.chat_template


def test_defaults_of_the_bases_class_are_written_out(tmp_path: Path) -> None:
    """LlamaTokenizer pads on the left and knows <s> and </s>; the generic class does neither."""
    folder = save(sentencepiece(True), tmp_path / "base")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    base, written, _ = export(folder, tmp_path / "out")
    assert type(base).__name__ == "LlamaTokenizer"
    assert (written.padding_side, written.bos_token, written.eos_token) == ("left", "<s>", "</s>")
    assert written(" two  spaces")["input_ids"] == base(" two  spaces")["input_ids"]


def test_a_prefix_space_survives_the_default_of_4x(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    export(save(tokenizer, tmp_path / "base"), tmp_path / "out")
    assert read(tmp_path / "out/tokenizer_config.json")["add_prefix_space"] is True


def test_a_message_that_4x_would_clean_up_is_refused(tmp_path: Path) -> None:
    folder = save(byte_level(), tmp_path / "base", clean_up_tokenization_spaces=True)
    export(folder, tmp_path / "out")
    with pytest.raises(BadInput, match=r"--refusal: .*' !'"):
        export(folder, tmp_path / "out", text="Requête refusée !")


def test_a_token_known_to_the_settings_only_is_named(tmp_path: Path) -> None:
    """It has the first id after tokenizer.json's, which is R's, and the base has a row for it."""
    folder = save(byte_level(), tmp_path / "base", pad_token="[PAD]")
    with pytest.raises(BadInput, match=r"\[PAD\]"):
        export(folder, tmp_path / "out", rows=1000)
