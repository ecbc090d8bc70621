"""The tokenizer: R prints the message and nothing encodes to it, and all other text is encoded as by the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from exporter.checkpoint.layout import BASE_FOLDER
from exporter.common.errors import first_line
from exporter.methods.refusal.token import (
    KEPT_SETTINGS,
    LIVE_SETTINGS,
    RefusalToken,
    check_refusal,
    check_tokenizer,
    own_settings,
    plan_refusal,
)
from exporter.models.files import size_in
from exporter.models.loading import load_tokenizer
from exporter.models.named_ids import GENERATION, problems, tokens_of
from exporter.verification.checks import Wrong, none_of
from exporter.verification.on_disk import OnDisk


def written(view: OnDisk) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer by the one class that all releases know. Raises Wrong where it does not load."""
    settings = view.read("tokenizer_config.json")
    if settings.get("tokenizer_class") != "PreTrainedTokenizerFast":
        raise Wrong(f"tokenizer_config.json: tokenizer_class is {settings.get('tokenizer_class')}")
    # Such as auto_map: AutoTokenizer would run the code that it names.
    if others := settings.keys() - {*own_settings({}), *KEPT_SETTINGS, *LIVE_SETTINGS}:
        raise Wrong(f"tokenizer_config.json has {', '.join(sorted(others))}, which no export writes")
    steps = view.read("tokenizer.json")
    if kept := [key for key in ("truncation", "padding") if steps.get(key) is not None]:
        raise Wrong(f"tokenizer.json has {' and '.join(kept)}, which no export writes")
    return loaded(PreTrainedTokenizerFast, view.folder, "the tokenizer")


def loaded(auto: Any, folder: Path, what: str) -> PreTrainedTokenizerBase:
    """The tokenizer that a class loads from a folder. Raises Wrong where it cannot."""
    try:
        return load_tokenizer(auto, folder)
    except ValueError as error:
        raise Wrong(f"{what} does not load ({first_line(error)})") from error


def check_refusal_token(view: OnDisk) -> str:
    """R, as config.json has it, in the checkpoint's own tokenizer, and the ids of other tokens that the files name."""
    record, tokenizer = view.record, written(view)
    refusal = record["refusal_token_id"]
    generation = view.read(GENERATION) if (view.folder / GENERATION).is_file() else {}
    none_of(problems(view.config, generation, tokens_of(tokenizer, refusal), size_in(view.config, "vocab_size")))
    if refusal is None:
        return "loads; there is no refusal"
    piece = tokenizer.convert_ids_to_tokens(refusal)
    if not isinstance(piece, str):
        raise Wrong(f"token {refusal}, which config.json names as the refusal, is not in the tokenizer")
    if beyond := [name for name, id_ in tokenizer.get_vocab().items() if id_ >= size_in(view.config, "vocab_size")]:
        raise Wrong(f"the tokenizer has {len(beyond)} tokens for which the model has no row")
    check_refusal(tokenizer, RefusalToken(record["refusal"], piece, refusal, record["added_row"]))
    return f"token {refusal} prints '{record['refusal']}', no text tried encodes to it"


def check_base_tokenizer(view: OnDisk) -> str:
    """Ids, encodings and chat template, against the tokenizer of the base's own files."""
    stored, config = view.read_base("tokenizer.json"), view.read_base("config.json")
    record, token = view.record, None
    if record["refusal"] is not None:
        token = plan_refusal(stored, size_in(config, "vocab_size"), record["refusal"])
        if (token.id, token.added_row) != (record["refusal_token_id"], record["added_row"]):
            raise Wrong(f"the refusal would be token {token.id}, config.json says {record['refusal_token_id']}")
    base = loaded(AutoTokenizer, view.folder / BASE_FOLDER, f"the base's tokenizer in {BASE_FOLDER}/")
    check_tokenizer(base, written(view), token)
    name = "tokenizer_config.json"
    has_settings = (view.folder / BASE_FOLDER / name).is_file()
    expected, found = own_settings(view.read_base(name) if has_settings else {}), view.read(name)
    # Where the base does not say on which side to pad, its class does, and releases may differ there.
    keys = {*KEPT_SETTINGS, *expected} - ({"padding_side"} - expected.keys())
    none_of(f"{name}: {key} is not the base's" for key in sorted(keys) if found.get(key) != expected.get(key))
    return "every token id, encoding and rendered chat that was tried is the base's"
