"""Bases of every form that is known, sound and broken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.damage_tokenizer import drop_token
from tests.damage_weights import POINTER
from tests.exporter.models.test_weights import OF_FILES, OF_SHAPES, weights
from tests.exporter.pipeline.test_weights_export import FORMS
from tests.odd_inputs.rows import Exported, Place, Refused, Row
from tests.odd_inputs.tokens import GENERATION, HUGE, TOKENS, base, file, ids, removed, short

WEIGHTS, NORM = "model.safetensors", "model.norm.weight"
SAID_BY = "docs/models.md:"


def model(name: str) -> Callable[[Place], object]:
    """What names another model; {folder} in it is the place's."""

    def make(place: Place) -> None:
        place.model = name.replace("{folder}", str(place.folder))

    return make


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Place], object]:
    def of(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return base(of)


def linked(place: Place) -> None:
    """As the Hub's cache has them."""
    blob = place.folder / "blob"
    (place.base / WEIGHTS).rename(blob)
    (place.base / WEIGHTS).symlink_to(blob)


def as_folder(name: str) -> Callable[[Place], object]:
    return lambda place: ((place.base / name).unlink(), (place.base / name).mkdir())


def link_to_base(place: Place) -> None:
    (place.folder / "link").symlink_to(place.base)
    place.model = str(place.folder / "link")


def header(text: str, length: int | None = None) -> Callable[[Place], object]:
    content = text.encode()
    return file(WEIGHTS, (len(content) if length is None else length).to_bytes(8, "little") + content)


def unsound(name: str, said: str, *values: Any) -> list[Row]:
    """A row for each value of a key in config.json."""
    return [
        Row(f"config.json: {name} {short(value)}", ids("config.json", **{name: value}), Refused(said))
        for value in values
    ]


SIZES = [
    *unsound("vocab_size", "vocab_size", float("nan"), None),
    *unsound("vocab_size", "vocab_size is .*, not a whole number above 0", -1, 0, True),
    *unsound("vocab_size", "vocab_size|MODEL base does not load", "400", HUGE, 400.5),
    *unsound("hidden_size", "MODEL base", -32, "32", 33, None, HUGE),
    *unsound("hidden_size", "MODEL base", 0),
    *unsound("intermediate_size", "MODEL base", 0, -64, "64", None),
    *unsound("num_hidden_layers", "MODEL base", "3", None),
    *unsound("num_hidden_layers", "MODEL", 0, -1),
    *unsound("num_attention_heads", "MODEL base", 0, 5, "4", None),
    *unsound("num_key_value_heads", "MODEL base", 0, 3, "2"),
    *unsound("head_dim", "MODEL base", 0, 7, "8"),
    *unsound("max_position_embeddings", "_embeddings is .*, not a whole number above 0", None, "256", 0, -1),
    *unsound("rms_norm_eps", "rms_norm_eps is .*, not a number above 0", None, "1e-6", -1.0),
    *unsound("hidden_act", "MODEL base", "nonsense", None, ["silu"]),
    *unsound("attention_bias", "no file has .*bias", True),
    *unsound("model_type", "has model_type .* `unskill families` lists what is supported", None, "gpt2", "dbrx", 7),
    *unsound("model_type", "says none of num_experts, .* number of experts", "mixtral"),
    Row("config.json: max_position_embeddings 10^30", ids("config.json", max_position_embeddings=HUGE), Exported()),
    Row("config.json: tie_word_embeddings \"yes\"", ids("config.json", tie_word_embeddings="yes"), Refused(
        "tie_word_embeddings|MODEL base"
    )),
    Row("config.json: model_type of a checkpoint", ids("config.json", model_type="unskill_llama"), Refused(
        "is an unskill checkpoint already: give its base model"
    )),
    Row("config.json: text_config, of a multimodal model", ids("config.json", model_type="x", text_config={}), Refused(
        "multimodal wrapper"
    )),
    Row("config.json: a number of 5,000 digits", file("config.json", '{"vocab_size": ' + "9" * 5000 + "}"), Refused(
        "config.json is not JSON"
    )),
    Row("config.json: unknown keys", ids("config.json", nonsense=[1, {"a": None}]), Exported()),
    Row("config.json: dtype null", ids("config.json", dtype=None), Exported()),
]  # fmt: skip

FILES = [
    *(
        Row(f"config.json: {name}", file("config.json", content), Refused("config.json is not"))
        for name, content in {
            "empty": "", "null": "null", "a list": "[]", "cut off": '{"model_type": ', "not UTF-8": b"\xff\xfe{}",
            "nested 100,000 deep": "[" * 100_000, "a pointer of Git LFS": POINTER,
        }.items()
    ),
    Row("config.json missing", removed("config.json"), Refused("has no config.json")),
    Row("config.json is a folder", as_folder("config.json"), Refused("config.json")),
    Row("tokenizer.json missing", removed("tokenizer.json"), Refused("has no tokenizer.json: a fast tokenizer is ne")),
    Row("tokenizer.json: {}", file("tokenizer.json", "{}"), Refused("is not as the library tokenizers")),
    Row("tokenizer.json: a list", file("tokenizer.json", "[]"), Refused("tokenizer.json is not a JSON object")),
    Row("tokenizer.json: cut off", file("tokenizer.json", '{"model": '), Refused("tokenizer.json is not JSON")),
    Row("tokenizer.json: a pointer of Git LFS", file("tokenizer.json", POINTER), Refused("tokenizer.json")),
    Row("tokenizer.json: model null", tokenizer(lambda own: own.update(model=None)), Refused(
        "is not as the library tokenizers writes it"
    )),
    Row("tokenizer.json: Unigram", tokenizer(lambda own: own["model"].update(type="Unigram")), Refused("only BPE is")),
    Row("tokenizer.json: an id twice", tokenizer(
        lambda own: own["model"]["vocab"].update({"<|im_end|>": 0})
    ), Refused("MODEL base")),
    Row("tokenizer.json: a token is gone that others are made of", base(lambda at: drop_token(at, "in")), Refused(
        "does not load: Token `in` out of vocabulary"
    )),
    Row("tokenizer_config.json missing", removed("tokenizer_config.json"), Exported()),
    Row("tokenizer_config.json: not JSON", file("tokenizer_config.json", "{"),
        Refused("tokenizer_config.json is not JSON")),
    Row("tokenizer_config.json: a list", file("tokenizer_config.json", "[]"),
        Refused("tokenizer_config.json is not a JSON object")),
    Row("tokenizer_config.json: an unknown class", ids("tokenizer_config.json", tokenizer_class="Nonsense"),
        Exported()),
    Row("generation_config.json: a list", file(GENERATION, "[]"), Refused("generation_config.json is not a JSON obj")),
    Row("generation_config.json: temperature beside do_sample false", ids(
        GENERATION, do_sample=False, temperature=0.6
    ), Exported()),
    Row("generation_config.json: temperature -1", ids(GENERATION, do_sample=True, temperature=-1), Exported()),
    Row("generation_config.json: temperature as text", ids(GENERATION, temperature="hot"), Exported()),
    Row("generation_config.json: max_length 5", ids(GENERATION, max_length=5), Exported()),
    Row("model.safetensors: empty", file(WEIGHTS, b""), Refused("is not a safetensors file")),
    Row("model.safetensors: a folder", as_folder(WEIGHTS), Refused("model.safetensors")),
    Row("model.safetensors: a header longer than the file", header("{}", 10**6), Refused("is truncated")),
    Row("model.safetensors: a header of 10^18 bytes", header("{}", 10**18), Refused("is not a safetensors file")),
    Row("model.safetensors: a header that is no JSON", header("{x}"), Refused("has a broken header")),
    Row("model.safetensors: no tensors", header("{}"), Refused("no file has")),
    Row("model.safetensors: a name that commands the terminal", header(
        '{"a\\u001b[2J\\n": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    ), Refused("is truncated|no file has")),
    Row("model.safetensors: a link out of the folder", linked, Refused("is a link to a file outside of the folder")),
    Row("NaN in a weight", base(weights(lambda own: own | {NORM: own[NORM] * float("nan")})),
        Refused("model.norm.weight holds NaN")),
]  # fmt: skip

PLACES = [
    Row("MODEL is a link to a folder", link_to_base, Exported()),
    Row("MODEL with a slash at its end", model("{folder}/base/"), Exported()),
    Row("MODEL is a file", model("{folder}/base/config.json"), Refused("MODEL")),
    Row("MODEL is an empty folder", lambda place: (
        os.mkdir(place.folder / "empty"), model("{folder}/empty")(place)
    ), Refused("MODEL empty has no config.json")),
    Row("MODEL is the folder above", model("{folder}"), Refused("has no config.json")),
    Row("MODEL is not there", model("{folder}/nowhere"), Refused("nowhere")),
    Row("MODEL is an empty text", model(""), Refused("MODEL")),
    Row("MODEL is an address", model("https://example.org/model"), Refused("MODEL")),
    Row("MODEL is a name of 300 letters", model("x" * 300), Refused("MODEL")),
    Row("MODEL is a Hub id, and there is no network", model("nobody/nothing"), Refused("MODEL nobody/nothing")),
    Row("MODEL is a checkpoint's files without weights", removed(WEIGHTS), Refused("has no model.safetensors")),
]  # fmt: skip

KNOWN = [
    Row(f"{SAID_BY} {name}", base(change), Refused(said)) for name, (change, said) in (OF_FILES | OF_SHAPES).items()
] + [Row(f"{SAID_BY} {name}", base(change), Exported(), made) for name, (made, change) in FORMS.items()]

MODELS = [*SIZES, *FILES, *TOKENS, *PLACES, *KNOWN]
