"""Formats: what the model is shown of a prompt, and what a tokenizer or chat template makes impossible."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from exporter.common.errors import BadInput
from exporter.prompts import packaged
from exporter.prompts.formats import FORMATS, Formatter
from exporter.prompts.sources import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT
)
DROPS_SYSTEM = CHAT.replace("messages %}", "messages if message['role'] != 'system' %}")
LAST_ONLY = "{{ raise_exception('One turn only') if messages | length > 1 }}" + CHAT
BROKEN = "{{ raise_exception('Nothing goes') }}"
TEXT = "Question: {prompt}\nAnswer:"


def tokenizer(chat_template: str | None = CHAT) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer over the bytes alone, which puts a BOS in front as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    vocabulary = {
        token: number for number, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", additional_special_tokens=special[2:]
    )
    made.chat_template = chat_template
    return made


def prompts(count: int, source: str = "sums.jsonl") -> list[Prompt]:
    return [Prompt(f"{row} plus {row}?", source, row) for row in range(1, count + 1)]


def text_of(formatter: Formatter, **keys: Any) -> str:
    ids = formatter.render("Why?", **keys)
    assert (
        tuple(tokenizer().encode(formatter.render_text("Why?", **keys), add_special_tokens=False)) == ids[-len(ids) :]
    )
    return str(tokenizer().decode(list(ids)))


def refused(*args: Any, **keys: Any) -> str:
    with pytest.raises(BadInput) as caught:
        Formatter(*args, **keys)
    return str(caught.value)


def test_chat_template_writes_its_own_special_tokens_once() -> None:
    formatter = Formatter(tokenizer())
    assert text_of(formatter) == "<s><|user|>Why?<|end|><|assistant|>"
    assert text_of(formatter, system="Be.", history=packaged.Exchange("Hi", "Ho").messages()) == (
        "<s><|system|>Be.<|end|><|user|>Hi<|end|><|assistant|>Ho<|end|><|user|>Why?<|end|><|assistant|>"
    )
    assert text_of(formatter, assistant_prefill="Sure, ").endswith("<|assistant|>Sure, ")
    assert formatter.notes == []


def test_other_text_gets_the_special_tokens_of_the_tokenizer() -> None:
    for made in (tokenizer(), tokenizer(None)):
        formatter = Formatter(made, template=TEXT)
        assert made.decode(list(formatter.render("a {prompt} b"))) == "<s>Question: a {prompt} b\nAnswer:"
        assert formatter.formats_used == ("plain",)
        assert made.decode(list(formatter.render("q", assistant_prefill=" Sure"))) == "<s>Question: q\nAnswer: Sure"
        assert {query.format for query in formatter.format(prompts(20), "--forget")} == {"plain"}
        with pytest.raises(BadInput, match="chat template"):
            formatter.render("q", system="Be.")


def test_without_chat_template_auto_takes_the_bare_prompt_and_says_so() -> None:
    formatter = Formatter(tokenizer(None))
    assert tokenizer().decode(list(formatter.render("Why?"))) == "<s>Why?"
    assert len(formatter.notes) == 1
    assert "last character" in formatter.notes[0]


def test_what_is_not_possible_is_refused_by_flag() -> None:
    assert "--prompt-template" in refused(tokenizer(None), template="chat")
    assert "{prompt}" in refused(tokenizer(), template="Question:")
    assert "--formats" in refused(tokenizer(), formats="system")
    assert "--system-prompt" in refused(tokenizer(), formats="plain", system_prompts=["Be."])
    assert "--system-prompt" in refused(tokenizer(), template=TEXT, system_prompts=["Be."])
    assert "--system-prompt" in refused(tokenizer(None), system_prompts=["Be."])
    assert "--system-prompt" in refused(tokenizer(NO_SYSTEM), system_prompts=["Be."])
    assert "--system-prompt" in refused(tokenizer(), system_prompts=[" "])
    assert "Nothing goes" in refused(tokenizer(BROKEN))
    assert "--prompt-template" in refused(tokenizer("constant"))


@pytest.mark.parametrize(
    ("chat_template", "left_out", "why"),
    [
        (NO_SYSTEM, "system", "System role not supported"),
        (DROPS_SYSTEM, "system", "leaves the message out"),
    ],
)
def test_formats_the_template_cannot_express_are_left_out_with_a_remark(
    chat_template: str, left_out: str, why: str
) -> None:
    formatter = Formatter(tokenizer(chat_template))
    assert formatter.formats_used == tuple(format_ for format_ in FORMATS if format_ != left_out)
    (remark,) = formatter.notes
    assert f"'{left_out}'" in remark
    assert why in remark
    assert {query.format for query in formatter.format(prompts(40), "--forget")} == set(formatter.formats_used)


def test_a_template_for_one_message_leaves_plain() -> None:
    formatter = Formatter(tokenizer(LAST_ONLY))
    assert formatter.formats_used == ("plain",)
    assert len(formatter.notes) == 2
    with pytest.raises(BadInput, match="One turn only"):
        formatter.render("q", system="Be.")


def test_mixture_is_a_third_each_and_queries_show_it() -> None:
    made = tokenizer()
    formatter = Formatter(made, system_prompts=["Speak like a miller."])
    queries = formatter.format(prompts(900), "--forget")
    assert [query.prompt for query in queries] == prompts(900)
    counts = Counter(query.format for query in queries)
    assert all(250 < counts[format_] < 350 for format_ in FORMATS)
    systems, firsts = set(), set()
    for query in queries:
        shown = str(made.decode(list(query.ids)))
        assert shown.endswith(f"<|user|>{query.prompt.text}<|end|><|assistant|>")
        assert ("<|system|>" in shown) == (query.format == "system")
        assert (shown.count("<|user|>") == 2) == (query.format == "second-turn")
        if query.format == "system":
            systems.add(shown.split("<|system|>")[1].split("<|end|>")[0])
        if query.format == "second-turn":
            firsts.add(shown.split("<|user|>")[1].split("<|end|>")[0])
    assert systems == {*packaged.system_prompts(), "Speak like a miller."}
    assert firsts == {exchange.user for exchange in packaged.exchanges()}


def test_in_each_format_a_prompt_is_what_it_is_in_its_own() -> None:
    formatter = Formatter(tokenizer(), seed=3)
    drawn = formatter.format(prompts(60), "--forget")
    each = formatter.in_each_format(drawn, "--forget")
    assert [query.format for query in each] == list(FORMATS) * 60
    assert [query.prompt for query in each[::3]] == prompts(60)
    assert set(drawn) <= set(each)
    assert len({query.variant for query in each if query.format == "system"}) > 10
    plain = Formatter(tokenizer(), formats="plain")
    drawn = plain.format(prompts(2), "--forget")
    assert plain.in_each_format(drawn, "--forget") == drawn


def test_plain_turns_the_mixture_off() -> None:
    assert {query.format for query in Formatter(tokenizer(), formats="plain").format(prompts(30), "--forget")} == {
        "plain"
    }


def test_draws_depend_on_seed_and_prompt_alone() -> None:
    formatter = Formatter(tokenizer(), seed=3)
    alone = formatter.format(prompts(50), "--forget")
    beside = formatter.format([*prompts(30, "other.csv"), *prompts(50)[::-1]], "--forget")
    assert beside[30:] == alone[::-1]
    assert [query.format for query in beside[:30]] != [query.format for query in alone[:30]]
    assert Formatter(tokenizer(), seed=3).format(prompts(50), "--forget") == alone
    assert Formatter(tokenizer(), seed=4).format(prompts(50), "--forget") != alone


def test_long_prompts() -> None:
    made = tokenizer()
    some = [Prompt("x" * length, "sums.jsonl", length) for length in (5, 50, 6)]
    bound = len(Formatter(made, formats="plain").render("x" * 6))
    assert len(Formatter(made, formats="plain", max_length=bound).format([some[2]], "--forget")) == 1
    with pytest.raises(BadInput, match=rf"--forget sums\.jsonl: row 50 has {bound + 44} tokens.*{bound}; --skip-long"):
        Formatter(made, formats="plain", max_length=bound).format(some, "--forget")
    skipping = Formatter(made, formats="plain", max_length=bound, skip_long=True)
    assert [query.prompt.row for query in skipping.format(some, "--forget")] == [5, 6]
    assert skipping.skipped == 1
    mixed = Formatter(made, max_length=bound, skip_long=True)
    drawn = Formatter(made, formats="plain").format(some, "--forget")
    assert [(query.format, query.prompt.row) for query in mixed.in_each_format(drawn, "--forget")] == [
        ("plain", 5),
        ("plain", 6),
    ]
    assert mixed.skipped == 0
    with pytest.raises(BadInput, match="--forget: every prompt"):
        skipping.format(some[1:2], "--forget")


def test_prompt_without_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    formatter = Formatter(tokenizer(None))
    monkeypatch.setattr(formatter, "render", lambda *_, **__: ())
    with pytest.raises(BadInput, match="row 1 has no tokens"):
        formatter.format(prompts(1), "--forget")


def test_another_text_in_the_format_of_a_query() -> None:
    """As long as it may be, and no longer; only the text itself changes, whatever it would have been drawn for."""
    queries = Formatter(tokenizer()).format(prompts(60), "--forget")
    assert {query.format for query in queries} == set(FORMATS)
    for query in queries:
        bound = len(query.ids) + len(" really?") - 1
        found = Formatter(tokenizer(), max_length=bound).like(query, query.prompt.text.replace("?", " really?"))
        assert found is not None and (found.format, found.variant) == (query.format, query.variant)
        assert (found.prompt.source, found.prompt.row) == (query.prompt.source, query.prompt.row)
        before, after = (tokenizer().decode(list(each.ids)) for each in (query, found))
        assert after == before.replace(query.prompt.text, found.prompt.text)
        assert Formatter(tokenizer(), max_length=bound).like(query, query.prompt.text + " really?") is None
