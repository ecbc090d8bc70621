"""Checks of adjusted neurons: an answer is the same in every way to compute it, for draws know nothing but the text.

The ways differ in the last bits of float32, so two answers may part where two tokens or the two sides of a decision
are as good as equal. `explained` looks whether that is so: it is remarked then, and a failure otherwise.
"""

from __future__ import annotations

import tempfile
from itertools import zip_longest

import torch
from by_hand import ACT, FIRST, part_of, positions_of, tokens_of
from common import NEW_TOKENS, RELEASE, Case, NotApplicable, check, needs_newest
from packaging import version
from transformers import DynamicCache

# Logits of the two best tokens, and a decision's log-likelihood ratio and its threshold, this close are equal.
LOGIT_GAP, DECISION_GAP = 1e-3, 1e-5
CLOSE = {"atol": 1e-3, "rtol": 1e-4}


def needs_adjusted(case: Case) -> None:
    if not case.adjusts:
        raise NotApplicable("no neurons are adjusted")


def assert_same_answers(case: Case, texts, ours, theirs, model=None) -> str:
    """Assert that the answers are equal or explained; what there is to remark."""
    remarks = [
        explained(case, model or case.model, case.encode(text)["input_ids"], mine, other)
        for text, mine, other in zip(texts, ours, theirs, strict=True)
        if mine != other
    ]
    return "; ".join([f"{len(texts)} answers", *remarks])


def explained(case: Case, model, prompt, mine, other) -> str:
    """Why two answers (lists of ids) after prompt (1, positions) part. Raises AssertionError where nothing says so."""
    place = next(place for place, (a, b) in enumerate(zip_longest(mine, other)) if a != b)
    ids = torch.cat([prompt, torch.tensor([mine[:place]], dtype=torch.int64)], -1)
    best = case.forward(model, {"input_ids": ids}).logits[0, -1].float().topk(2).values
    gap = float(best[0] - best[1])
    if gap < LOGIT_GAP:
        return f"one parts at token {place}, logits {gap:.1e} apart"
    decision = float(distances(case, model, {"input_ids": ids}).min())
    if decision < DECISION_GAP:
        return f"one parts at token {place}, a decision {decision:.1e} from the other one"
    raise AssertionError(
        f"{case.text(mine)!r} instead of {case.text(other)!r}: parted at token {place}, where the best two logits are "
        f"{gap:.1e} apart, and no decision was closer than {decision:.1e}"
    )


def distances(case: Case, model, inputs, **options) -> torch.Tensor:
    """How far each decision is from the other one: (batch, positions, neurons of all layers)."""
    pre_activations, handles = {}, []
    for layer in case.neurons.adjusted:

        def keep(module, args, output, layer=layer):
            pre_activations[layer] = output.clone()  # it is changed in place

        handles.append(part_of(model.model.layers[layer].mlp, FIRST).register_forward_hook(keep))
    case.forward(model, inputs, **options)
    for handle in handles:
        handle.remove()
    call = positions_of({**inputs, **options}), tokens_of({**inputs, **options})
    found = [
        case.neurons.decide(layer, value[..., case.neurons.adjusted[layer]["index"]].float(), *call)[2]
        for layer, value in pre_activations.items()
    ]
    return torch.cat(found, -1)


def assert_close(case: Case, ours, theirs, inputs) -> str:
    """Assert that logits (batch, positions, vocabulary) are close up to a decision that is as good as open."""
    real = inputs["attention_mask"][:, -ours.shape[1] :].bool()
    far = ~torch.isclose(ours, theirs, **CLOSE).all(-1) & real
    for row, place in far.nonzero().tolist():
        near = distances(case, case.model, inputs)[row, : place + 1].min()
        worst = (ours - theirs)[row, place].abs().max()
        assert near < DECISION_GAP, f"row {row}, position {place}: logits {worst:.1e} apart, decisions {near:.1e}"
    return f"{int(far.sum())} of {int(real.sum())} positions after a decision that fell otherwise" if far.any() else ""


def cache_of(model):
    """Arguments of a forward that is to be followed by another: see `growing_cache` in checks_forward."""
    return {"use_cache": True, **({"past_key_values": DynamicCache()} if version.parse("4.57") > RELEASE else {})}


@check
def neurons_moved(case: Case):
    """Neurons are moved, by some tokens and not by others, and the logits show it; without them it is the base."""
    needs_adjusted(case)
    inputs = case.encode(case.mixed)
    real = inputs["attention_mask"].bool()
    logits = case.forward(case.model, inputs).logits
    still = case.load()
    for layer in case.neurons.adjusted:
        still.model.layers[layer].mlp.unskill_adjusted = 0
    still.model.unskill_layers = {**still.model.unskill_layers, "adjusted": ()}
    unmoved = case.forward(still, inputs).logits
    free = case.free(logits, inputs) & case.free(unmoved, inputs)
    worst = float((logits - unmoved)[free].abs().max())
    assert worst > 0.01, f"logits are at most {worst:.1e} apart from those with no neuron moved"
    if not (case.base_is_changed or case.refuses or case.neurons.pruned):
        bare = case.load(folder=case.base)
        assert torch.equal(case.forward(bare, inputs).logits[real], unmoved[real]), "not the base without them"
    moved = total = 0
    for layer, neurons in case.neurons.adjusted.items():
        seen = {}

        def before_it(module, args, output, seen=seen):
            seen["before"] = output.clone()  # it is changed in place

        def after_it(module, args, seen=seen):
            seen["after"] = args[0].clone()

        mlp = case.model.model.layers[layer].mlp
        handles = (
            part_of(mlp, FIRST).register_forward_hook(before_it),
            part_of(mlp, ACT).register_forward_pre_hook(after_it),
        )
        case.forward(case.model, inputs)
        for handle in handles:
            handle.remove()
        after = seen["after"]
        before = seen["before"][..., : after.shape[-1]]
        changed = (before != after)[real]
        others = torch.ones(before.shape[-1], dtype=torch.bool)
        others[neurons["index"]] = False
        assert not changed[:, others].any(), f"layer {layer}: neurons are moved that are not to be"
        moved, total = moved + int(changed.sum()), total + changed.shape[0] * len(neurons["index"])
    assert 0 < moved < total, f"{moved} of {total}"
    return f"{moved / total:.0%} of {total} moved, logits up to {worst:.2g} apart"


@check
def adjusted_twice(case: Case):
    needs_adjusted(case)
    first, second = (case.generate(case.model, case.every) for _ in range(2))
    assert first == second
    again = case.load()
    assert case.generate(again, case.every) == first


@check
def adjusted_batched(case: Case):
    """Answers in a batch are those alone; how often also in bfloat16."""
    needs_adjusted(case)
    answers = []
    for dtype in ("float32", "bfloat16"):
        model = case.model if dtype == "float32" else case.load(dtype)
        batches = [case.mixed, case.answered]
        batched = [ids for texts in batches for ids in case.generate(model, texts)]
        texts = [text for texts in batches for text in texts]
        answers.append((texts, batched, [case.generate(model, text)[0] for text in texts]))
    remark = assert_same_answers(case, *answers[0])
    texts, batched, alone = answers[1]
    equal = sum(mine == other for mine, other in zip(batched, alone, strict=True))
    return f"{remark}; in bfloat16 {equal} of {len(texts)} equal"


@check
def adjusted_padded(case: Case):
    """Pads on the left, of a mask alone or with positions, change nothing; positions that count them would."""
    needs_adjusted(case)
    remarks = []
    for text in case.answered:
        inputs = case.encode(text)
        pads = torch.full((1, 5), case.tokenizer.pad_token_id)
        padded = {
            "input_ids": torch.cat([pads, inputs["input_ids"]], -1),
            "attention_mask": torch.cat([torch.zeros_like(pads), inputs["attention_mask"]], -1),
        }
        output = case.model.generate(
            **padded, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=case.tokenizer.pad_token_id
        )
        mine = case.until_end(output[0, padded["input_ids"].shape[1] :].tolist())
        remarks.append(assert_same_answers(case, [text], [mine], case.generate(case.model, text)))
        positions = (padded["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        plain = case.forward(case.model, inputs).logits
        for options in ({}, {"position_ids": positions}):
            ours = case.forward(case.model, padded, **options).logits[:, 5:]
            assert_close(case, ours, plain, inputs)
    return noted(remarks)


def noted(remarks):
    """The remarks that tell more than a number of answers."""
    return f"{len(remarks)} texts" + "".join(f"; {text}" for text in remarks if ";" in text or "position" in text)


@check
def adjusted_without_cache(case: Case):
    needs_adjusted(case)
    ours = case.generate(case.model, case.every, use_cache=False)
    return assert_same_answers(case, case.every, ours, case.generate(case.model, case.every))


@check
def adjusted_saved(case: Case):
    needs_adjusted(case)
    with tempfile.TemporaryDirectory() as folder:
        case.model.save_pretrained(folder)
        loaded = case.load(folder=folder)
        ours, theirs = (case.generate(model, case.every) for model in (loaded, case.model))
    return assert_same_answers(case, case.every, ours, theirs)


@check
def adjusted_positions(case: Case):
    """Positions count as they are given: the same ones change nothing, others draw otherwise, as by hand."""
    needs_adjusted(case)
    shifted = 0
    for text in [*case.answered, *case.blocked]:
        inputs = case.encode(text)
        count = inputs["input_ids"].shape[1]
        plain = case.forward(case.model, inputs).logits
        for mask in (inputs, {"input_ids": inputs["input_ids"]}):
            given = case.forward(case.model, mask, position_ids=torch.arange(count).unsqueeze(0)).logits
            assert torch.equal(given, plain)
            assert torch.equal(case.forward(case.model, mask).logits, plain)
        elsewhere = {"position_ids": torch.arange(9, 9 + count).unsqueeze(0)}
        ours, theirs = (case.forward(each, inputs, **elsewhere).logits for each in (case.model, case.base_model))
        free = case.free(ours, inputs)
        assert torch.equal(case.base_columns(ours)[free], case.base_columns(theirs)[free])
        both = free & case.free(plain, inputs)
        shifted += int((~torch.isclose(ours, plain, **CLOSE)).any(-1)[both].sum())
    assert shifted, "positions are not looked at"


@check
def adjusted_from_embeddings(case: Case):
    """Of embeddings no ids are known: they count as 0, as by hand."""
    needs_adjusted(case)
    differ = 0
    for text in [*case.answered, *case.blocked]:
        inputs = case.encode(text)
        plain = case.forward(case.model, inputs).logits
        given = []
        for model in (case.model, case.model, case.base_model):
            call = {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
            given.append(case.forward(model, {**call, "attention_mask": inputs["attention_mask"]}).logits)
        assert torch.equal(given[0], given[1])
        free = case.free(given[0], inputs)
        assert torch.equal(case.base_columns(given[0])[free], case.base_columns(given[2])[free])
        both = free & case.free(plain, inputs)
        differ += int((~torch.isclose(given[0], plain, **CLOSE)).any(-1)[both].sum())
    assert differ, "ids are not looked at"


@check
def chunked_prefill(case: Case):
    """A prompt in parts is the whole prompt, whether or not a mask or positions say where a part begins."""
    needs_adjusted(case)
    remarks = []
    for text in case.answered:
        inputs = case.encode(text)
        ids, count = inputs["input_ids"], inputs["input_ids"].shape[1]
        whole = case.forward(case.model, inputs).logits
        size = max(1, count // 3)
        for given in ((), ("mask",), ("mask", "positions")):
            parts, cache = [], cache_of(case.model)
            for start in range(0, count, size):
                call = {"input_ids": ids[:, start : start + size], **cache}
                end = start + call["input_ids"].shape[1]
                if "mask" in given:
                    call["attention_mask"] = inputs["attention_mask"][:, :end]
                if "positions" in given:
                    call["position_ids"] = torch.arange(start, end).unsqueeze(0)
                output = case.forward(case.model, call)
                cache = {"past_key_values": output.past_key_values, "use_cache": True}
                parts.append(output.logits)
            remarks.append(assert_close(case, torch.cat(parts, 1), whole, inputs))
    if version.parse("5.23") <= RELEASE:  # generate does it itself; 5.0 has the option, but fails for want of a cache
        ours = [case.generate(case.model, text, prefill_chunk_size=7)[0] for text in case.answered]
        theirs = [case.generate(case.model, text)[0] for text in case.answered]
        remarks.append(assert_same_answers(case, case.answered, ours, theirs))
    return noted(remarks)


@check
def adjusted_compiled(case: Case):
    """A greedy answer through the compiled forward, without a cache."""
    needs_newest()
    needs_adjusted(case)
    model = case.load()
    compiled = torch.compile(model.forward, fullgraph=True, dynamic=True)
    ours, texts = [], case.answered
    for text in texts:
        inputs = case.encode(text)
        ids, start = inputs["input_ids"], inputs["input_ids"].shape[1]
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                logits = compiled(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], -1)
        ours.append(case.until_end(ids[0, start:].tolist()))
    theirs = [case.generate(case.model, text)[0] for text in texts]
    return assert_same_answers(case, texts, ours, theirs)
