"""Ways to damage the tokenizer of a copy of a checkpoint, and what ends an answer: functions of its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.damage import Change, Damage, edit, put, set_, settings_of


def tokenizer(change: Change) -> Damage:
    return lambda folder: edit(folder / "tokenizer.json", change)


def tokenizer_config(change: Change) -> Damage:
    return lambda folder: edit(folder / "tokenizer_config.json", change)


def drop_token(folder: Path, token: int | str) -> None:
    def change(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        content["model"]["vocab"] = {name: id_ for name, id_ in vocab.items() if token not in (name, id_)}

    tokenizer(change)(folder)


def swap_tokens(content: dict[str, Any]) -> None:
    """Two letters: what other trainings of a tokenizer number otherwise."""
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["e"] = vocab["e"], vocab["a"]


def add_message_token(folder: Path) -> None:
    """The message as an added token, which is found in any text that holds it."""
    settings = settings_of(folder)["unskill"]
    token = {"id": settings["refusal_token_id"], "content": settings["refusal"], "special": False}
    token |= {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer(lambda content: content["added_tokens"].append(token))(folder)


def change_template(folder: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    edit(folder / "tokenizer_config.json", set_(chat_template=template))
    if (path := folder / "chat_template.jinja").is_file():
        put(path, template.encode())


def other_end(folder: Path) -> None:
    edit(folder / "generation_config.json", set_(eos_token_id=settings_of(folder)["unskill"]["eos_token_id"] + 1))


def no_end(folder: Path) -> None:
    edit(folder / "generation_config.json", set_(eos_token_id=None))


def refusal_as_pad(folder: Path) -> None:
    edit(folder / "generation_config.json", set_(pad_token_id=settings_of(folder)["unskill"]["refusal_token_id"]))


TRUNCATION = {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0}
CODE = b"from transformers import PreTrainedTokenizerFast\n\n\nclass Tokenizer(PreTrainedTokenizerFast):\n    pass\n"


def own_code(folder: Path) -> None:
    """A class of its own, which AutoTokenizer takes before the one that is named."""
    put(folder / "modeling_unskill_tokenizer.py", CODE)
    names = [None, "modeling_unskill_tokenizer.Tokenizer"]
    tokenizer_config(set_(auto_map={"AutoTokenizer": names}))(folder)
