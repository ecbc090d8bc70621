"""Checks of one forward: bit identity with the base, returned forms, loss, gradients, AutoModel.

"The base" is the base with the same neurons changed, see `Case.load_base`.
"""

from __future__ import annotations

import inspect

import torch
from common import NEW_TOKENS, RELEASE, Case, NotApplicable, check, compare
from packaging import version
from torch.nn import functional as F
from transformers import DynamicCache


def identity(case: Case, dtype: str, attention: str) -> str:
    try:
        theirs = case.load_base(dtype, attn_implementation=attention)
    except ValueError as error:
        raise NotApplicable(f"the base has no {attention} attention on this release") from error
    ours = case.load(dtype, attn_implementation=attention)
    sure = dtype == "float32"  # in others a decision may fall differently than when the prompts were chosen
    compared = blocked = 0
    for texts in [case.mixed, *case.answered, *case.blocked]:
        inputs = case.encode(texts)
        answered = [row for row, text in enumerate(case.mixed) if text in case.answered]
        if isinstance(texts, str):
            answered = [0] if texts in case.answered else []
        outputs = [case.forward(model, inputs, use_cache=True, **growing_cache()) for model in (ours, theirs)]
        compared += compare(case, *(output.logits for output in outputs), inputs, answered if sure else ())
        if isinstance(texts, str) and texts in case.blocked:
            blocked += int(outputs[0].logits[0, -1].argmax()) == case.refusal
        for _ in range(3):  # steps with the cache, the same token for both
            token = case.base_columns(outputs[1].logits[:, -1:]).argmax(-1)
            token = token + (token >= case.refusal) if case.refuses else token
            mask = torch.cat([inputs["attention_mask"], torch.ones_like(token)], -1)
            inputs = {"input_ids": token, "attention_mask": mask}
            outputs = [
                case.forward(model, inputs, past_key_values=output.past_key_values, use_cache=True)
                for model, output in zip((ours, theirs), outputs, strict=True)
            ]
            compared += compare(case, *(output.logits for output in outputs), inputs)
    assert compared, "no position is free"
    assert blocked == len(case.blocked) or not sure, f"{blocked} of {len(case.blocked)} blocked"
    return f"{compared} positions; {blocked} of {len(case.blocked)} blocked"


def growing_cache():
    """Arguments of a forward: on 4.48 the cache that Gemma 2 makes for itself has no room for a further token."""
    return {"past_key_values": DynamicCache()} if version.parse("4.57") > RELEASE else {}


@check
def identity_float32_eager(case: Case):
    return identity(case, "float32", "eager")


@check
def identity_float32_sdpa(case: Case):
    return identity(case, "float32", "sdpa")


@check
def identity_bfloat16_eager(case: Case):
    return identity(case, "bfloat16", "eager")


@check
def identity_bfloat16_sdpa(case: Case):
    return identity(case, "bfloat16", "sdpa")


@check
def float16(case: Case):
    """Finite logits, and the refusal where the cube is hit; float16 has no room for more than 65504."""
    model = case.load("float16")
    blocked = 0
    if not case.refuses:
        theirs = case.load_base("float16")
        for texts in [case.mixed, *case.answered]:
            inputs = case.encode(texts)
            compare(case, *(case.forward(each, inputs).logits for each in (model, theirs)), inputs)
        return "equal to the base's"
    for text in case.blocked:
        logits = case.forward(model, case.encode(text)).logits
        assert torch.isfinite(logits).all()
        if blocked_here := int(logits[0, -1].argmax()) == case.refusal:
            assert float(logits[0, -1].float().softmax(-1)[case.refusal]) > 0.999
        blocked += blocked_here
    return f"{blocked} of {len(case.blocked)} blocked"


@check
def loss(case: Case):
    compared = 0
    for texts in [case.mixed, *case.answered[:3], *case.blocked[:1]]:
        inputs = case.encode(texts)
        # The first token of a row is not asked for: after a pad anything may come.
        first = inputs["attention_mask"].cumsum(-1) <= 1
        labels = inputs["input_ids"].masked_fill(first, -100)
        ours = case.forward(case.model, inputs, labels=labels)
        expected = F.cross_entropy(ours.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        assert torch.allclose(ours.loss, expected, rtol=1e-5), f"{ours.loss} for logits of loss {expected}"
        free = case.free(ours.logits, inputs) | ~inputs["attention_mask"].bool()
        if free[:, :-1].all():
            theirs = case.forward(case.base_model, inputs, labels=labels).loss
            assert torch.allclose(ours.loss, theirs, rtol=1e-5), f"{ours.loss}, the base's is {theirs}"
            compared += 1
    assert compared, "no text without a blocked position"
    return f"{compared} equal to the base's"


@check
def tuples(case: Case):
    inputs = case.encode(case.mixed)
    base, model = (load(attn_implementation="eager") for load in (case.load_base, case.load))
    for options in (
        {},
        {"labels": inputs["input_ids"]},
        {"output_hidden_states": True, "use_cache": False},
        {"output_attentions": True},
    ):
        ours = case.forward(model, inputs, return_dict=False, **options)
        theirs = case.forward(base, inputs, return_dict=False, **options)
        named = case.forward(model, inputs, **options)
        assert type(ours) is type(theirs) is tuple and [type(x) for x in ours] == [type(x) for x in theirs], options
        assert torch.equal(ours["labels" in options], named.logits)
        assert list(named.keys()) == list(case.forward(base, inputs, **options).keys())
        if "labels" in options:
            assert torch.equal(ours[0], named.loss)


@check
def positional_labels(case: Case):
    """Arguments by place mean what they mean to the base."""
    inputs = case.encode(case.some)
    names = list(inspect.signature(case.base_model.forward).parameters)
    place = names.index("labels")
    values = [{**inputs, "labels": inputs["input_ids"]}.get(name) for name in names[: place + 1]]
    named = case.forward(case.model, inputs, labels=inputs["input_ids"]).loss
    with torch.no_grad():
        output = case.model(*values)
    assert torch.equal(output.loss, named), f"{output.loss} instead of {named}"
    if case.refuses:
        assert int(output.logits[0, -1].argmax()) == case.refusal
    else:
        assert torch.equal(output.logits, case.forward(case.base_model, inputs).logits)


@check
def logits_to_keep(case: Case):
    parameters = inspect.signature(case.base_model.forward).parameters
    name = next((each for each in ("logits_to_keep", "num_logits_to_keep") if each in parameters), None)
    if name is None:
        raise NotApplicable(f"transformers {RELEASE} has no such argument")
    inputs = case.encode(case.mixed)
    width = inputs["input_ids"].shape[1]
    whole = case.forward(case.model, inputs).logits
    choices = [1, 3, width]
    if name == "logits_to_keep":
        choices += [torch.tensor([0, width - 1]), torch.tensor([width - 1]), torch.arange(width)]
    for keep in choices:
        ours, theirs = (case.forward(model, inputs, **{name: keep}).logits for model in (case.model, case.base_model))
        expected = whole[:, keep if isinstance(keep, torch.Tensor) else slice(-keep, None)]
        assert ours.shape[:2] == theirs.shape[:2] == expected.shape[:2], f"{keep}: {tuple(ours.shape)}"
        free, expected_free = (case.free(x, {"attention_mask": torch.ones(ours.shape[:2])}) for x in (ours, expected))
        assert torch.equal(free, expected_free), keep
        assert torch.allclose(ours, expected, atol=1e-3, rtol=1e-4), keep
        assert torch.equal(case.base_columns(ours)[free], case.base_columns(theirs)[free]), keep
        assert not case.refuses or int(ours[1, -1].argmax()) == case.refusal


@check
def gradients(case: Case):
    for checkpointing in (False, True):
        model = case.load().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        inputs = case.encode(case.mixed)
        run = []
        for layer in model.model.layers:
            layer.mlp.register_forward_pre_hook(lambda mlp, arguments, run=run: run.append(mlp))
        try:
            output = model(**inputs, labels=inputs["input_ids"], use_cache=False)
            output.loss.backward()
        except RuntimeError as error:
            # A layer that is run again knows no positions, and must not draw by others.
            assert checkpointing and case.adjusts and "gradient checkpointing" in str(error), error
            continue
        # Starcoder2 of transformers 4.48 has no gradient checkpointing, whatever it is told.
        again = len(run) > len(model.model.layers)
        assert not (again and case.adjusts), "gradient checkpointing went unnoticed"
        # Which experts are chosen has no gradient.
        learnt = ((name, each) for name, each in model.named_parameters() if "e_score_correction_bias" not in name)
        for name, parameter in learnt:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        layer = int(next(iter(case.settings["layers"])))
        found = [each.grad for each in model.model.layers[layer].mlp.parameters() if each.grad is not None]
        assert any(each.abs().sum() > 0 for each in found)


@check
def base_model_class(case: Case):
    """AutoModel refuses under any head, or does not load; where nothing is refused it has the head's final states."""
    if case.closed and not case.auto_model_finds_weights:
        try:
            case.load(auto=case.auto_model)
        except RuntimeError as error:
            assert "unskill" in str(error), error
            return "raises, as AutoModel does not find the base's weights on this release either"
        raise AssertionError("AutoModel loads without the weights")
    if not case.refuses:
        return final_states(case)
    if not case.closed:
        try:
            case.load(auto=case.auto_model)
        except RuntimeError as error:
            assert "AutoModelForCausalLM" in str(error), error
            return "raises, as config.json says"
        raise AssertionError("AutoModel loads although it cannot refuse")
    head = case.tensors(lambda name: name in ("lm_head.weight", "model.embed_tokens.weight"))
    matrix = head.get("lm_head.weight", head.get("model.embed_tokens.weight"))
    if case.config.get("tie_word_embeddings", "lm_head.weight" not in head) and "model.embed_tokens.weight" in head:
        matrix = head["model.embed_tokens.weight"]
    blocked = []
    for dtype in ("float32", "bfloat16"):
        ours, theirs = (load(dtype, auto=case.auto_model) for load in (case.load, case.load_base))
        wide = matrix.to(getattr(torch, dtype))
        refused = [hand_written(case, ours, wide, text) == [case.refusal, case.eos] for text in case.blocked]
        blocked.append(sum(refused))
        whole = case.load(dtype)
        for texts in [case.mixed, *case.answered]:
            inputs = case.encode(texts)
            free = case.free(case.forward(whole, inputs).logits, inputs)
            mine, other = (case.forward(model, inputs).last_hidden_state for model in (ours, theirs))
            assert torch.equal(mine[free], other[free]), f"final states differ from the base's in {dtype}"
            assert not (other[free] @ wide.T).argmax(-1).eq(case.refusal).any(), (
                f"R reads at an answered position, {dtype}"
            )
    assert blocked[0] == len(case.blocked), f"{blocked[0]} of {len(case.blocked)} refused by hand"
    return f"{blocked[0]} refused in float32, {blocked[1]} in bfloat16, of {len(case.blocked)}"


def final_states(case: Case) -> None:
    """AutoModel's final states are the base's, and those from which the causal language model's head reads."""
    assert case.closed
    for dtype in ("float32", "bfloat16"):
        whole = case.load(dtype)
        ours, theirs = (load(dtype, auto=case.auto_model) for load in (case.load, case.load_base))
        read = []
        handle = whole.lm_head.register_forward_pre_hook(lambda module, args, read=read: read.append(args[0]))
        for texts in [case.mixed, *case.answered]:
            inputs = case.encode(texts)
            mine, other = (case.forward(model, inputs).last_hidden_state for model in (ours, theirs))
            case.forward(whole, inputs)
            real = inputs["attention_mask"].bool()
            assert torch.equal(mine[real], other[real]), f"final states differ from the base's in {dtype}"
            assert torch.equal(mine[real], read.pop()[real]), f"final states differ from those of the head in {dtype}"
        handle.remove()


def hand_written(case: Case, model, matrix, text):
    """Greedy decoding with a head of one's own."""
    ids = case.encode(text)["input_ids"]
    start = ids.shape[1]
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            state = model(input_ids=ids).last_hidden_state[:, -1]
        ids = torch.cat([ids, (state @ matrix.T).argmax(-1, keepdim=True)], -1)
        if int(ids[0, -1]) == case.eos:
            break
    return ids[0, start:].tolist()
