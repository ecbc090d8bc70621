"""Ids that a base's files name, its tokens and its chat template, sound and broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.exporter.models.test_named_ids import add_token
from tests.exporter.models.test_weights import Change
from tests.odd_inputs.rows import Exported, Place, Refused, Row
from tests.tiny import CHAT_TEMPLATE, edit_json

GENERATION, HUGE = "generation_config.json", 10**30


def base(*changes: Change) -> Callable[[Place], object]:
    """What changes a place's base."""
    return lambda place: [change(place.base) for change in changes]


def file(name: str, content: str | bytes) -> Callable[[Place], object]:
    return lambda place: place.put(f"base/{name}", content)


def ids(name: str, **values: Any) -> Callable[[Place], object]:
    """What sets keys of a JSON file; of `...` takes them out."""

    def change(folder: Path) -> None:
        def edited(own: dict[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in {**own, **values}.items() if value is not ...}

        edit_json(folder / name, edited)

    return base(change)


def removed(*names: str) -> Callable[[Place], object]:
    return lambda place: [(place.base / name).unlink() for name in names]


def short(value: Any) -> str:
    """A value as JSON, of few letters."""
    return "10^30" if value == HUGE else json.dumps(value)


def template(text: Any) -> Callable[[Place], object]:
    """What gives the base another chat template, in which prompts are then formatted."""

    def make(place: Place) -> None:
        edit_json(place.base / "tokenizer_config.json", lambda own: {**own, "chat_template": text})
        (place.base / "chat_template.jinja").unlink(missing_ok=True)
        if isinstance(text, str):
            (place.base / "chat_template.jinja").write_text(text)
        place.drop("--prompt-template")

    return make


def no_template(place: Place) -> None:
    ids("tokenizer_config.json", chat_template=...)(place)
    (place.base / "chat_template.jinja").unlink()
    place.drop("--prompt-template")


def no_generation(place: Place) -> None:
    ids("config.json", eos_token_id=...)(place)
    removed(GENERATION)(place)


def both_null(place: Place) -> None:
    ids("config.json", eos_token_id=None)(place)
    ids(GENERATION, eos_token_id=None)(place)


def new_token(place: Place) -> None:
    template(CHAT_TEMPLATE.replace("<|im_start|>assistant", "<|new|>"))(place)
    add_token(place.base, "<|new|>", 400)


def lost_pad(place: Place) -> None:
    add_token(place.base, "[PAD]", 400)
    ids("tokenizer_config.json", pad_token="[PAD]")(place)


IDS = [
    Row("eos_token_id absent from both files", no_generation,
        Refused("no eos_token_id in generation_config.json or co")),
    Row("eos_token_id null in both files", both_null, Refused("no eos_token_id in generation_config.json or config")),
    Row("generation_config.json: {}", file(GENERATION, "{}"), Exported()),
    Row("eos_token_id null in generation_config.json alone", ids(GENERATION, eos_token_id=None), Exported()),
    Row("eos_token_id a list of two", ids(GENERATION, eos_token_id=[2, 0]), Exported()),
    *(
        Row(f"eos_token_id {short(value)}", ids(GENERATION, eos_token_id=value), Refused(f"eos_token_id {said}"))
        for value, said in [
            ([], "is an empty list; name the token"), ([2, 99999], "99999 has no row"), (-1, "-1 has no row"),
            (True, "True is not a whole number"), (2.0, "2.0 is not a whole number"), ("2", "'2' is not a"),
            ([[2]], r"\[2\] is not a whole number"), (HUGE, "10+ has no row"),
        ]
    ),
    Row("pad_token_id beyond the rows", ids(GENERATION, pad_token_id=400), Refused("pad_token_id 400 has no row")),
    Row("a pad token of the tokenizer without a row", lost_pad, Exported("has no row for its pad token '.PAD.'")),
    Row("bos_token_id as text", ids("config.json", bos_token_id="1"), Refused("'bos_token_id' expected int, got")),
    Row("rows without tokens", lambda place: None, Exported(), {"padding_rows": 7}),
    Row("an added token without a row that nothing writes", base(lambda at: add_token(at, "<|image|>", 400)),
        Exported()),
    Row("the same in a forget prompt", lambda place: (
        add_token(place.base, "<|image|>", 400), place.put("more.txt", "What is <|image|>?"),
        place.forget.append(str(place.folder / "more.txt"))
    ), Refused(r"--forget more.txt: row 1 .*has token '<\|image\|>' \(400\)")),
    Row("the same in the chat template", new_token, Refused(r"the chat template writes token '<\|new\|>' \(400\)")),
]  # fmt: skip

TEMPLATES = [
    Row("no chat template", no_template, Exported()),
    Row("no chat template, and --prompt-template chat", lambda place: (
        no_template(place), place.more.extend(["--prompt-template", "chat"])
    ), Refused("--prompt-template: the model's tokenizer has no chat template; give auto or a TEXT")),
    Row("a chat template with an error of syntax", template("{% for message in messages %}"),
        Refused("chat template")),
    Row("a chat template that always raises", template("{{ raise_exception('No.') }}"), Refused("chat template")),
    Row("a chat template that divides by zero", template("{{ 1 / 0 }}"), Refused("chat template")),
    Row("a chat template that loops 10^12 times", template("{% for i in range(10**12) %}{% endfor %}"), Refused(
        "chat template"
    )),
    Row("a chat template that takes no system message", template(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system.') }}{% endif %}" + CHAT_TEMPLATE
    ), Exported()),
    Row("a chat template that writes no message", template("Hello."), Refused("chat template")),
    Row("an empty chat template", template(""), Exported()),
    Row("a chat template that is a number", template(7), Refused("chat_template|chat template")),
    Row("chat templates by name", template([{"name": "default", "template": CHAT_TEMPLATE}]), Exported()),
    Row("a chat template in bytes that are no UTF-8", lambda place: (
        template(CHAT_TEMPLATE)(place), place.put("base/chat_template.jinja", b"\xff\xfe")
    ), Refused("chat_template.jinja|UTF-8|utf-8")),
    Row("a chat template with a switch for thinking", template(CHAT_TEMPLATE.replace(
        "<|im_start|>assistant\n{% endif %}",
        "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
        "<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )), Exported(summary={"formats": ["plain", "system", "second-turn", '{"enable_thinking": false}']})),
]  # fmt: skip

TOKENS = [*IDS, *TEMPLATES]
