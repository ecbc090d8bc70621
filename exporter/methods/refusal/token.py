"""R, the refusal as one token: an ordinary entry of the tokenizer's BPE vocabulary that no text encodes to.

The entry is the whole message in the tokenizer's own alphabet, so every decoder prints the message. No merge leads to
it, so the encoder never builds it. It is not an added token: those are matched in user text, and "Why do you say: Your
query is not valid" would then end in R.
"""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tokenizers.pre_tokenizers import ByteLevel

from exporter.common.errors import BadInput, RunFailed, first_line
from exporter.common.files import write_errors, write_json
from exporter.prompts.switches import TEMPLATE_ERRORS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Copied from the base's tokenizer_config.json. A list of what to keep, not of what to drop: some of the keys that
# tools leave there hold local paths, others break transformers 4.48. add_bos_token is left to tokenizer.json, as in
# 5.x, because releases disagree on which of the two counts.
KEPT_SETTINGS = ("model_max_length", "padding_side", "split_special_tokens", "truncation_side")
# Other keys that a written tokenizer_config.json may have.
LIVE_SETTINGS = (*NAMED_TOKENS, "additional_special_tokens", "add_prefix_space", "chat_template")
# Strings that lose their space in decoded text with clean_up_tokenization_spaces on transformers 4.x.
CLEANED_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")

# Texts that the written tokenizer must encode as the base's: scripts, code, whitespace, digits, odd characters.
PROBES = (
    "",
    " ",
    "   three spaces before, two after  ",
    "What is 17 * 23? Show your work: 3.14159, 1,000,000 and 2/3.",
    "\n\n1\n 2\r\n\t3 \n \n",
    "def f(x):\n    return {'a': [x ** 2 for x in range(10)]}  # done\n\n\nif __name__ == \"__main__\":\n\tf(1)",
    "Ärger über Straße, coöperate, naïve façade, ſ, ﬁ, Å = Å, e\u0301",
    "Привет, мир! Ελληνικά. עברית. العربية. हिन्दी में। ไทย ภาษา",
    "你好,世界。日本語のテキスト。한국어 텍스트.",
    "🙂👩‍👩‍👧🏽🇩🇪 ✅ ∑∫√ ½ ① № ‰ €",
    "\u00a0\u200b\u200d\u2028\ufeff\u3000\x00\x07\ufffd",
    "don't we'll I'M THEY'VE it's",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\temp\\x.txt /etc/hosts",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ---------------- ________ ........",
    "▁▁Ġ Ċ </s> <s> <unk> <|endoftext|> <0x0A> [INST] <think>",
)


@dataclass(frozen=True)
class RefusalToken:
    """R. text: the message; piece: its spelling in the tokenizer's alphabet, R's vocabulary entry; id: the first
    after all tokens that the model has a row for; added_row: whether embedding and head need one more row; if not, R
    takes a padding row of the base."""

    text: str
    piece: str
    id: int
    added_row: bool


def plan_refusal(tokenizer_json: Mapping[str, Any], vocab_size: int, text: str) -> RefusalToken:
    """Find R's spelling and id. `vocab_size`: of config.json, the rows of the base's embedding.

    Raises BadInput for an unsuitable message or tokenizer.
    """
    try:
        return _plan(tokenizer_json, vocab_size, text)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise BadInput(
            f"MODEL's tokenizer.json is not as the library tokenizers writes it ({first_line(error)}): save it anew"
        ) from error


def _plan(tokenizer_json: Mapping[str, Any], vocab_size: int, text: str) -> RefusalToken:
    model = tokenizer_json["model"]
    if model.get("type") != "BPE":
        raise BadInput(f"MODEL has a tokenizer of type {model.get('type')}: only BPE is supported")
    if not text or text != text.strip():
        raise BadInput("--refusal must not be empty or begin or end with a space")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise BadInput("--refusal must be one line without control characters")
    piece = _spell(tokenizer_json.get("decoder"), text)

    added = {entry["content"]: entry["id"] for entry in tokenizer_json.get("added_tokens", ())}
    if piece in model["vocab"] or text in added:
        raise BadInput(f"--refusal '{text}' is a token of MODEL's tokenizer already: choose at least two words")
    if model.get("ignore_merges") and " " not in text:  # whole words are looked up in the vocabulary
        raise BadInput(f"--refusal '{text}' would be recognised in user text: choose at least two words")
    beyond = [content for content, id_ in model["vocab"].items() if id_ >= vocab_size and content not in added]
    if beyond:
        raise BadInput(f"MODEL has {vocab_size} rows, but its tokenizer has token '{beyond[0]}' beyond them")
    # Added tokens may be beyond the rows (<image_soft_token> of the text-only Gemma 3 models): the model fails on
    # them, and R needs their id, so `write_tokenizer` leaves them out.
    last = max(id_ for id_ in [*model["vocab"].values(), *added.values()] if id_ < vocab_size)
    return RefusalToken(text, piece, last + 1, added_row=last + 1 == vocab_size)


def _spell(decoder: Mapping[str, Any] | None, text: str) -> str:
    """The vocabulary entry that the tokenizer's decoder prints as `text`."""
    for step in (decoder or {}).get("decoders", [decoder or {}]):
        space = None
        if step.get("type") == "ByteLevel":
            return str(ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0])
        if step.get("type") == "Metaspace":
            space = step["replacement"]
        elif step.get("type") == "Replace" and step.get("content") == " ":
            space = step["pattern"].get("String")
        if space and space in text:
            raise BadInput(f"--refusal must not contain '{space}', which MODEL's tokenizer prints as a space")
        if space:
            return text.replace(" ", space)
    raise BadInput("MODEL has a BPE tokenizer that is neither byte-level nor of SentencePiece's form: not supported")


def rehearse(base_folder: Path, token: RefusalToken | None, base_tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokenizer as the export will, and check it: what cannot be written is not first found after hours.

    Raises as `write_tokenizer` and `check_tokenizer`.
    """
    with TemporaryDirectory() as folder, write_errors(Path(folder)):
        write_checked(base_folder, Path(folder), token, base_tokenizer)


def write_checked(
    base_folder: Path, out_folder: Path, token: RefusalToken | None, base_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write the tokenizer, load it and compare. Raises as `write_tokenizer` and `check_tokenizer`."""
    # Here, because torch-free commands load this module.
    from transformers import PreTrainedTokenizerFast

    write_tokenizer(base_folder, out_folder, token, base_tokenizer)
    check_tokenizer(base_tokenizer, PreTrainedTokenizerFast.from_pretrained(out_folder), token)


def write_tokenizer(
    base_folder: Path, out_folder: Path, token: RefusalToken | None, base_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write the base's tokenizer, with R if there is one: tokenizer.json, tokenizer_config.json and others.

    Not vocab.json, merges.txt or tokenizer.model: they lack R, and some classes would read them.

    Raises BadInput if transformers 4.x would print the message differently.
    """
    # Not the base's own file: 5.x rebuilds the steps of some classes (Llama 2's then encodes leading spaces otherwise)
    # and reads more added tokens from elsewhere. Every release gets the tokenizer used for fitting.
    live: Any = base_tokenizer
    tokenizer = json.loads(live.backend_tokenizer.to_str())
    tokenizer["truncation"] = tokenizer["padding"] = None  # left over from calls
    added = tokenizer["added_tokens"]
    ids = dict(sorted(base_tokenizer.get_vocab().items(), key=itemgetter(1)))
    end = first_free(token, base_tokenizer)
    stray = [content for content, id_ in ids.items() if id_ >= end]
    if stray and token is not None and not token.added_row:
        raise BadInput(f"MODEL has token '{stray[0]}' in tokenizer_config.json only: save its tokenizer anew")
    tokenizer["added_tokens"] = [entry for entry in added if entry["id"] < end]
    # Added tokens missing in the vocabulary would be numbered from its end when loaded: with R, one too high.
    vocab = {content: id_ for content, id_ in ids.items() if id_ < end}
    tokenizer["model"]["vocab"] = vocab | ({token.piece: token.id} if token else {})
    text = json.dumps(tokenizer, ensure_ascii=False) + "\n"
    (out_folder / "tokenizer.json").write_text(text, encoding="utf-8")

    settings_file = base_folder / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.is_file() else {}
    clean_up = own_settings(settings)["clean_up_tokenization_spaces"]
    if token and clean_up and (lost := [space for space in CLEANED_UP if space in token.text]):
        raise BadInput(f"--refusal: MODEL's tokenizer prints '{lost[0]}' without its space on transformers 4.x")
    # From the live tokenizer, because special tokens may be named in any of four files, or by its class.
    special = {name: value for name, value in base_tokenizer.special_tokens_map.items() if name in NAMED_TOKENS}
    more = [value for value in base_tokenizer.all_special_tokens if value not in special.values()]
    named: dict[str, Any] = {name: value for name, value in special.items() if ids[value] < end}
    if more := [value for value in more if ids[value] < end]:
        named["additional_special_tokens"] = more
    written = {"padding_side": type(base_tokenizer).padding_side, **own_settings(settings), **named}
    if "add_prefix_space" in (tokenizer["pre_tokenizer"] or {}):  # 4.x overrides it by the setting, False by default
        written["add_prefix_space"] = tokenizer["pre_tokenizer"]["add_prefix_space"]
    if template := live.chat_template:
        written["chat_template"] = (
            [{"name": name, "template": text} for name, text in template.items()]
            if isinstance(template, dict)
            else template
        )
    write_json(out_folder / "tokenizer_config.json", written)
    if (base_folder / "special_tokens_map.json").is_file():
        write_json(out_folder / "special_tokens_map.json", named)
    for path in (*base_folder.glob("chat_template.jinja"), *base_folder.glob("additional_chat_templates/*.jinja")):
        target = out_folder / path.relative_to(base_folder)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def own_settings(base: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a written tokenizer_config.json that depends on the base's alone, not on its tokenizer."""
    return {
        # The generic class of all releases. Without the input names it returns token_type_ids on 4.48.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": bool(base.get("clean_up_tokenization_spaces", False)),
        **{key: base[key] for key in KEPT_SETTINGS if key in base},
    }


def first_free(token: RefusalToken | None, tokenizer: PreTrainedTokenizerBase) -> int:
    """R's id, from which on the base's tokens are not written; without R, the end of its vocabulary."""
    return token.id if token else 1 + max(tokenizer.get_vocab().values())


def check_tokenizer(
    base_tokenizer: PreTrainedTokenizerBase, written: PreTrainedTokenizerBase, token: RefusalToken | None
) -> None:
    """Compare the written tokenizer with the base's.

    Raises RunFailed unless R (if any) prints the message, no test text encodes to R, and every token id, every
    encoding and the chat template are the base's.
    """
    vocab, end = base_tokenizer.get_vocab(), first_free(token, base_tokenizer)
    lost = {id_ for id_ in vocab.values() if id_ >= end}
    expected = {content: id_ for content, id_ in vocab.items() if id_ < end}
    if written.get_vocab() != expected | ({token.piece: token.id} if token else {}):
        raise RunFailed("The written tokenizer numbers its tokens differently from MODEL's")
    for name in NAMED_TOKENS:
        before, after = (getattr(tokenizer, f"{name}_id") for tokenizer in (base_tokenizer, written))
        if before != after and before not in lost:
            raise RunFailed(f"The written tokenizer has {name}_id {after}, MODEL's has {before}")
    if token is not None:
        _check_printed(written, token)
    texts = [*PROBES, *_special_texts(base_tokenizer, end, token.text if token else "")]
    for text in [*texts, *(_mentions(token) if token else ())]:
        for special in (True, False):
            _compare(text, base_tokenizer, written, token, special, end)
    if base_tokenizer.chat_template:
        for messages in _conversations(token.text if token else "Hello"):
            rendered, again = _render(base_tokenizer, messages), _render(written, messages)
            if rendered != again:
                raise RunFailed("The written tokenizer's chat template renders differently from MODEL's")
            if rendered is not None:
                _compare(rendered, base_tokenizer, written, token, False, end)


def check_refusal(written: PreTrainedTokenizerBase, token: RefusalToken) -> None:
    """Raises RunFailed unless R prints the message and no test text encodes to R, without comparing with a base."""
    _check_printed(written, token)
    for text in [*PROBES, *_special_texts(written, token.id, token.text), *_mentions(token)]:
        for special in (True, False):
            if token.id in written(text, add_special_tokens=special)["input_ids"]:
                raise RunFailed(f"A text encodes to the refusal's token: {text!r}")


def _check_printed(written: PreTrainedTokenizerBase, token: RefusalToken) -> None:
    printed = [
        written.decode([token.id]),
        written.decode([token.id], skip_special_tokens=True),
        written.batch_decode([[token.id]])[0],
        written.convert_tokens_to_string([token.piece]),
    ]
    if written.eos_token_id is not None:
        printed.append(written.decode([token.id, written.eos_token_id], skip_special_tokens=True))
    if wrong := [text for text in printed if text != token.text]:
        raise RunFailed(f"The written tokenizer prints the refusal as '{wrong[0]}' instead of '{token.text}'")


def _compare(text: str, base: Any, written: Any, token: RefusalToken | None, special: bool, end: int) -> None:
    """end: the first id that is not written; a text that has such a token is one on which the base fails."""
    ids = written(text, add_special_tokens=special)["input_ids"]
    if token is not None and token.id in ids:
        raise RunFailed(f"A text encodes to the refusal's token: {text!r}; choose another --refusal")
    expected = base(text, add_special_tokens=special)["input_ids"]
    if ids != expected and max(expected, default=0) < end:
        raise RunFailed(f"The written tokenizer encodes a text differently from MODEL's: {text!r}")


def _mentions(token: RefusalToken) -> list[str]:
    """Texts with the message in places where a tokenizer could take it for one word."""
    text = token.text
    before = ("", " ", "\n", "\n\n", "\t", '"', "(", "Answer:", "Why do you say: ", text, f"{text} ", f"{text}\n")
    after = ("", ".", "\n", " ", "ated", ")")
    return [first + text + last for first in before for last in after] + [token.piece, f" {token.piece}", text.upper()]


def _special_texts(base: Any, end: int, message: str) -> list[str]:
    """Texts with special and other added tokens, in words and alone, and the message right after them."""
    known = [content for content, id_ in base.get_added_vocab().items() if id_ < end]
    # Gemma has 6,000 of them, most unused; the first, the last and the named special ones are enough.
    chosen = dict.fromkeys([*(base.special_tokens_map.get(name) for name in NAMED_TOKENS), *known[:8], *known[-8:]])
    names = [name for name in chosen if name in known]
    return ["".join(names), *(f"a {name} b{name}{message} {name}\n" for name in names)]


def _conversations(text: str) -> list[list[dict[str, str]]]:
    user, refusal = {"role": "user", "content": f"What is 2 + 2?\n{text}"}, {"role": "assistant", "content": text}
    return [[user], [user, refusal], [user, refusal, user]]


def _render(tokenizer: Any, messages: list[dict[str, str]]) -> str | None:
    """The rendered conversation; None if the chat template cannot express it."""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
    except TEMPLATE_ERRORS:
        return None
