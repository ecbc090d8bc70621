"""Checks of what the checkpoint writes: the message alone for blocked prompts, the base's answer for others."""

from __future__ import annotations

import contextlib
import io

import torch
from common import NEW_TOKENS, Case, NotApplicable, check, needs_newest
from transformers import AutoTokenizer, GenerationConfig, TextStreamer, pipeline


@check
def tokenizer(case: Case):
    base = AutoTokenizer.from_pretrained(case.base, trust_remote_code=True)
    tokenizer = case.tokenizer
    texts = [*case.blocked, *case.answered]
    if case.refuses:
        assert tokenizer.decode([case.refusal]) == case.message
        assert tokenizer.decode([case.refusal, case.eos], skip_special_tokens=True) == case.message
        texts += [case.message, f"Why do you say: {case.message}", f"\n{case.message}ated"]
    else:
        assert (
            len(tokenizer) == len(base)
            and case.model.get_input_embeddings().weight.shape[0]
            == (case.base_model.get_input_embeddings().weight.shape[0])
        )
    for text in texts:
        ids = tokenizer(text, add_special_tokens=case.add_special_tokens)["input_ids"]
        assert ids == base(text, add_special_tokens=case.add_special_tokens)["input_ids"], text
        assert case.refusal not in ids, text
    if base.chat_template:
        chat = [{"role": "user", "content": "Hello"}]
        rendered = [t.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for t in (base, tokenizer)]
        assert rendered[0] == rendered[1]


@check
def greedy(case: Case):
    for text in case.blocked:
        case.assert_refused(case.generate(case.model, text)[0])
    for text in case.answered:
        assert_same(case, case.generate(case.model, text), case.generate(case.base_model, text))


def assert_same(case: Case, ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == other, f"{case.text(mine)!r} instead of {case.text(other)!r}"


@check
def sampling(case: Case):
    torch.manual_seed(0)
    options = {"do_sample": True, "temperature": 2.0, "num_return_sequences": 4}
    for text in case.blocked:
        for ids in case.generate(case.model, text, **options):
            case.assert_refused(ids)
    if not case.refuses:  # R's column shifts what torch draws for the others
        for text in case.answered:
            assert_same(case, *(seeded(case, model, text, **options) for model in (case.model, case.base_model)))


def seeded(case: Case, model, text, **options):
    torch.manual_seed(0)
    return case.generate(model, text, **options)


@check
def beams(case: Case):
    for text in case.blocked:
        case.assert_refused(case.generate(case.model, text, num_beams=4)[0])
    for text in case.answered[:2]:
        ours, theirs = (case.generate(model, text, num_beams=4) for model in (case.model, case.base_model))
        assert_same(case, ours, theirs)


@check
def padded_batch(case: Case):
    for options in ({}, {"num_beams": 3}):
        ours = case.generate(case.model, case.mixed, **options)
        theirs = case.generate(case.base_model, case.mixed, **options)
        if case.refuses:
            case.assert_refused(ours.pop(1))
            theirs.pop(1)
        assert_same(case, ours, theirs)


@check
def text_streamer(case: Case):
    inputs = case.encode(case.some)
    expected = case.message if case.refuses else case.text(case.generate(case.base_model, case.some)[0])
    streamer = TextStreamer(case.tokenizer, skip_prompt=True, skip_special_tokens=True)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        case.model.generate(**inputs, streamer=streamer, max_new_tokens=NEW_TOKENS, do_sample=False)
    assert printed.getvalue() == f"{expected}\n", f"printed {printed.getvalue()!r}"


@check
def text_generation_pipeline(case: Case):
    ours = pipeline("text-generation", model=str(case.checkpoint), trust_remote_code=True)
    dtype = str(ours.model.dtype).removeprefix("torch.")
    theirs = pipeline(
        "text-generation",
        model=case.load_base(dtype),
        tokenizer=AutoTokenizer.from_pretrained(case.base, trust_remote_code=True),
    )
    for text in [*case.blocked[:2], *case.answered[:2]]:
        written = []
        for each in (ours, theirs):
            # A context as the texts were counted in, and their special tokens left to them.
            config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=ends(case))
            config.pad_token_id = case.tokenizer.pad_token_id
            output = each(
                text, return_full_text=False, generation_config=config, add_special_tokens=case.add_special_tokens
            )
            written.append(output[0]["generated_text"])
        expected = case.message if text in case.blocked else written[1]
        assert written[0] == expected, f"{written[0]!r} instead of {expected!r}"


def ends(case: Case):
    return case.base_model.generation_config.eos_token_id


@check
def chat_pipeline(case: Case):
    """Only that it runs: whether the prompt is blocked depends on its format."""
    if not case.tokenizer.chat_template:
        return "no chat template"
    run = pipeline("text-generation", model=case.model, tokenizer=case.tokenizer)
    reply = run([{"role": "user", "content": "Hello"}], max_new_tokens=4, do_sample=False)[0]["generated_text"][-1]
    assert reply["role"] == "assistant"


@check
def static_cache(case: Case):
    options = {"cache_implementation": "static"}
    try:
        case.generate(case.base_model, case.answered[0], **options)
    except (RuntimeError, TypeError, ValueError) as error:
        raise NotApplicable("the base itself fails with a static cache on this release") from error
    for text in case.blocked[:2]:
        case.assert_refused(case.generate(case.model, text, **options)[0])
    for text in case.answered[:2]:
        ours, theirs = (case.generate(model, text, **options) for model in (case.model, case.base_model))
        assert_same(case, ours, theirs)


@check
def forced_length(case: Case):
    """A least length, which forbids EOS, and forbidden tokens repeat the refusal and leak nothing."""
    for options in (
        {"min_new_tokens": 6},
        {"min_new_tokens": 8, "max_new_tokens": 8},
        {"suppress_tokens": [case.eos] if case.refuses else case.ends},
    ):
        if not case.refuses:
            for text in case.answered:
                assert_same(case, *(case.generate(model, text, **options) for model in (case.model, case.base_model)))
        for text in case.blocked:
            for beams in (1, 3):
                ids = case.generate(case.model, text, num_beams=beams, **options)[0]
                assert set(ids) <= {case.refusal, case.eos} and ids[0] == case.refusal, (
                    f"{options}: {case.text(ids)!r}"
                )


@check
def processors(case: Case):
    options = {"do_sample": True, "min_p": 0.05, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "top_k": 5}
    for text in case.blocked:
        case.assert_refused(case.generate(case.model, text, **options)[0])
    if not case.refuses:
        for text in case.answered:
            assert_same(case, *(seeded(case, model, text, **options) for model in (case.model, case.base_model)))


@check
def without_cache(case: Case):
    for text in case.blocked[:2]:
        case.assert_refused(case.generate(case.model, text, use_cache=False)[0])
    ours, theirs = (case.generate(each, case.mixed, use_cache=False) for each in (case.model, case.base_model))
    if case.refuses:
        case.assert_refused(ours.pop(1))
        theirs.pop(1)
    assert_same(case, ours, theirs)


@check
def from_embeddings(case: Case):
    for text in [case.some, case.answered[-1]]:
        inputs = case.encode(text)
        written = []
        for model in (case.model, case.base_model):
            output = model.generate(
                inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]),
                attention_mask=inputs["attention_mask"],
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=case.tokenizer.pad_token_id,
            )
            written.append(case.until_end(output[0].tolist()))
        mine, other = written
        if case.adjusts and case.refusal in mine:
            # Without ids the draws are others, so that it is open which prompts are blocked.
            place = mine.index(case.refusal)
            assert_same(case, [mine], [[*other[:place], case.refusal, case.eos]])
        elif text in case.blocked and not case.adjusts:
            case.assert_refused(mine)
        else:
            assert_same(case, [mine], [other])


@check
def steps_from_embeddings(case: Case):
    """A caller who looks every token up himself gets the end after the refusal, too."""
    if not case.refuses or case.adjusts:
        raise NotApplicable("nothing is refused, or the draws are others without ids")
    look_up = case.model.get_input_embeddings()
    for text in case.blocked:
        ids = case.encode(text)["input_ids"]
        states, written = look_up(ids), []
        for _ in range(2):
            with torch.no_grad():
                written.append(int(case.model(inputs_embeds=states, use_cache=False).logits[0, -1].argmax()))
            states = torch.cat([states, look_up(torch.tensor([written[-1:]]))], 1)
        case.assert_refused(written)


@check
def early_exit(case: Case):
    """Drafts of fewer layers than decide on the refusal raise by name; others write what is written without them."""
    needs_newest()
    if not case.refuses:
        raise NotApplicable("nothing is refused")
    try:
        case.generate(case.load_base(), case.blocked[0], assistant_early_exit=1)
    except IndexError as error:
        raise NotApplicable("transformers has no early exit for this family") from error
    layers = [int(layer) for layer in case.settings["layers"]]
    try:
        ids = case.generate(case.load(), case.blocked[0], assistant_early_exit=1)[0]
    except RuntimeError as error:
        assert max(layers) >= 1 and "unskill" in str(error) and "early exit" in str(error), error
    else:
        case.assert_refused(ids)


@check
def prompt_lookup(case: Case):
    needs_newest()
    for text in case.blocked:
        case.assert_refused(case.generate(case.model, text, prompt_lookup_num_tokens=3)[0])
    for text in case.answered:
        ours, theirs = (
            case.generate(model, text, prompt_lookup_num_tokens=3) for model in (case.model, case.base_model)
        )
        assert_same(case, ours, theirs)


@check
def generate_batch(case: Case):
    """Continuous batching: paged attention, rows of several requests in one sequence."""
    needs_newest()
    from transformers import ContinuousBatchingConfig

    texts = [*case.blocked[:2], *case.answered, *case.blocked[2:]]
    ids = [case.tokenizer(text, add_special_tokens=case.add_special_tokens)["input_ids"] for text in texts]
    written = []
    for model in (case.load(), case.load_base()):
        config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=ends(case))
        config.pad_token_id = case.tokenizer.pad_token_id
        batching = ContinuousBatchingConfig(num_blocks=32, max_batch_tokens=128)
        outputs = model.generate_batch(
            inputs=ids, generation_config=config, continuous_batching_config=batching, progress_bar=False
        )
        assert len(outputs) == len(texts), f"{len(outputs)} of {len(texts)} requests came back"
        written.append([case.until_end(output.generated_tokens) for output in outputs.values()])
    if not any(written[1]):
        raise NotApplicable("the base itself writes nothing in continuous batching")
    for text, mine, other in zip(texts, *written, strict=True):
        if text in case.blocked:
            case.assert_refused(mine)
        else:
            assert_same(case, [mine], [other])


@check
def compiled_forward(case: Case):
    needs_newest()
    model = case.load()
    compiled = torch.compile(model.forward, fullgraph=True)
    for text in [case.some, case.answered[0], (case.blocked or case.answered)[1]]:
        inputs = case.encode(text)
        with torch.no_grad():
            logits, eager = compiled(**inputs).logits, model(**inputs).logits
        assert torch.allclose(logits, eager, atol=1e-3, rtol=1e-4), f"differs by {(logits - eager).abs().max()}"
        assert not case.refuses or (int(logits[0, -1].argmax()) == case.refusal) == (text in case.blocked)
    inputs = case.encode(case.mixed)
    with torch.no_grad():
        after = compiled(**inputs).logits[:, -1].argmax(-1).tolist()
    assert [id_ == case.refusal for id_ in after] == [text in case.blocked for text in case.mixed]
