"""Token ids that a model's files name and its tokenizer writes, held against rows and tokens before any forward.

Which ids end an answer is read here and nowhere else, from the files. transformers takes a generation_config.json as
it is, and does not look into config.json for what it lacks.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jinja2

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION = "generation_config.json"
EOS = "eos_token_id"
USER, ASSISTANT = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}
CHATS = ([USER], [{"role": "system", "content": "Hello"}, USER], [USER, ASSISTANT], [USER, ASSISTANT, USER])
"""Conversations in all forms that the export renders."""


def as_ids(value: Any) -> list[Any]:
    """What a JSON file names under a key, as a list: null is none."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def end_ids(config: Mapping[str, Any], generation: Mapping[str, Any]) -> list[int]:
    """Ids that end an answer: those of generation_config.json ({} where there is none), else those of config.json."""
    return as_ids(generation.get(EOS)) or as_ids(config.get(EOS))


def problems(
    config: Mapping[str, Any], generation: Mapping[str, Any], tokens: Mapping[int, str], rows: int
) -> Iterator[str]:
    """What is wrong with the ids that the files name, one sentence each: every one is to be a token with a row.

    tokens: of the tokenizer, by id; rows: of the model's embedding.
    """
    for file, content in ((GENERATION, generation), ("config.json", config)):
        for key in (EOS, "pad_token_id", "bos_token_id"):
            value = content.get(key)
            several = isinstance(value, list) and key == EOS
            if several and not value:
                yield f"{file}: {key} is an empty list; name the token that ends an answer"
            for each in as_ids(value) if several else [value]:
                if value is not None and (wrong := _wrong(each, tokens, rows)):
                    advice = "name a token with a row" + ("" if key == EOS else ", or leave the key out")
                    yield f"{file}: {key} {wrong}; {advice}"
    if not end_ids(config, generation):
        yield f"no {EOS} in {GENERATION} or config.json, so no answer ends; name the token that ends one"


def _wrong(value: Any, tokens: Mapping[int, str], rows: int) -> str | None:
    """Why a value is no id of a token that has a row; None where it is."""
    if type(value) is not int:  # neither true nor 2.0, which Python would take for numbers of tokens
        return f"{reprlib.repr(value)} is not a whole number"
    if value in tokens and value < rows:
        return None
    named = f" ('{tokens[value]}')" if value in tokens else ""
    if 0 <= value < rows:
        return f"{value} is a row without a token"
    return f"{reprlib.repr(value)}{named} has no row, the model has {rows}"


def tokens_of(tokenizer: PreTrainedTokenizerBase, refusal: int | None = None) -> dict[int, str]:
    """Every token by its id, but the refusal's own."""
    return {id_: content for content, id_ in tokenizer.get_vocab().items() if id_ != refusal}


def rowless(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[int, str]:
    """Tokens for which the model has no row, by id."""
    return {id_: content for id_, content in tokens_of(tokenizer).items() if id_ >= rows}


def problems_of_texts(tokenizer: PreTrainedTokenizerBase, rows: int) -> Iterator[str]:
    """Tokens without a row that stand in every text or chat: the tokenizer adds or the chat template writes them."""
    lost = rowless(tokenizer, rows)
    if not lost:
        return
    for who, ids in _written(tokenizer):
        for id_ in ids:
            if id_ in lost:
                yield (
                    f"{who} writes token '{lost[id_]}' ({id_}), and the model has {rows} rows; give it that row "
                    "(resize_token_embeddings), or take the token out"
                )


def _written(tokenizer: Any) -> Iterator[tuple[str, list[int]]]:
    """Who writes, and token ids of a text and of conversations."""
    yield "the tokenizer", tokenizer("Hello", verbose=False)["input_ids"]
    if not tokenizer.chat_template:
        return
    for chat in CHATS:
        for begins in (False, True):
            try:
                text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=begins)
            except (jinja2.TemplateError, TypeError, ValueError):
                continue  # a form that the template does not take is not used
            yield "the chat template", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def lost_pad(tokenizer: PreTrainedTokenizerBase, rows: int) -> str | None:
    """The tokenizer's pad token where the model has no row for it."""
    pad: Any = tokenizer.pad_token_id
    return None if pad is None or pad < rows else str(tokenizer.pad_token)
