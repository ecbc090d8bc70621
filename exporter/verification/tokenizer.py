"""The tokenizer: R prints the message and nothing encodes to it, and all other text is read as the base reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.common.errors import first_line
from exporter.common.files import read_json
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
from exporter.verification.checks import Wrong, none_of
from exporter.verification.view import BASE_FOLDER, View

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def written(view: View) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer by the one class that all releases know. Raises Wrong where it does not load."""
    from transformers import PreTrainedTokenizerFast

    settings = read_json(view.folder / "tokenizer_config.json", view.name, "CHECKPOINT")
    if settings.get("tokenizer_class") != "PreTrainedTokenizerFast":
        raise Wrong(f"tokenizer_config.json: tokenizer_class is {settings.get('tokenizer_class')}")
    # auto_map among them: AutoTokenizer would run the code that it names.
    if others := settings.keys() - {*own_settings({}), *KEPT_SETTINGS, *LIVE_SETTINGS}:
        raise Wrong(f"tokenizer_config.json has {', '.join(sorted(others))}, which no export writes")
    steps = read_json(view.folder / "tokenizer.json", view.name, "CHECKPOINT")
    if kept := [key for key in ("truncation", "padding") if steps.get(key) is not None]:
        raise Wrong(f"tokenizer.json has {' and '.join(kept)}, which no export writes")
    return loaded(PreTrainedTokenizerFast, view.folder, "the tokenizer")


def loaded(auto: Any, folder: Path, what: str) -> PreTrainedTokenizerBase:
    """What a class makes of a folder. Raises Wrong where its tokenizer.json cannot be read."""
    try:
        return load_tokenizer(auto, folder)
    except ValueError as error:
        raise Wrong(f"{what} does not load ({first_line(error)})") from error


def check_refusal_token(view: View) -> str:
    """R by config.json, in the checkpoint's own tokenizer."""
    record, tokenizer = view.record, written(view)
    end = record["refusal_token_id"]
    if end is None:
        return "loads; there is no refusal"
    piece = tokenizer.convert_ids_to_tokens(end)
    if not isinstance(piece, str):
        raise Wrong(f"token {end}, which config.json names as the refusal, is not in the tokenizer")
    if beyond := [name for name, id_ in tokenizer.get_vocab().items() if id_ >= size_in(view.config, "vocab_size")]:
        raise Wrong(f"the tokenizer has {len(beyond)} tokens for which the model has no row")
    check_refusal(tokenizer, RefusalToken(record["refusal"], piece, end, record["added_row"]))
    return f"token {end} prints '{record['refusal']}', no text on trial encodes to it"


def check_base_tokenizer(view: View) -> str:
    """Ids, encodings and chat template, against the tokenizer of the base's own files."""
    from transformers import AutoTokenizer

    stored = read_json(view.base_file("tokenizer.json"), view.name, "base of")
    config = read_json(view.base_file("config.json"), view.name, "base of")
    record = view.record
    token = None
    if record["refusal"] is not None:
        token = plan_refusal(stored, size_in(config, "vocab_size"), record["refusal"])
        if (token.id, token.added_row) != (record["refusal_token_id"], record["added_row"]):
            raise Wrong(f"the refusal would be token {token.id}, config.json says {record['refusal_token_id']}")
    base = loaded(AutoTokenizer, view.folder / BASE_FOLDER, f"the base's tokenizer in {BASE_FOLDER}/")
    check_tokenizer(base, written(view), token)
    kept = view.folder / BASE_FOLDER / "tokenizer_config.json"
    expected = own_settings(read_json(kept, view.name, "base of") if kept.is_file() else {})
    found = read_json(view.folder / "tokenizer_config.json", view.name, "CHECKPOINT")
    # Where the base does not say on which side to pad, its class does, which releases need not agree on.
    keys = {*KEPT_SETTINGS, *expected} - ({"padding_side"} - expected.keys())
    none_of(
        f"tokenizer_config.json: {key} is not the base's"
        for key in sorted(keys)
        if found.get(key) != expected.get(key)
    )
    return "every token id, encoding and rendered chat on trial is the base's"
