"""Checks of what a model holds: buffers in every dtype, copies, two threads, a forward that fails."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import torch
from common import RELEASE, Case, check, compare
from packaging import version


@check
def buffers(case: Case):
    """Of their own dtype and bit-exact after every way to another dtype."""
    stored = case.tensors(lambda name: ".unskill_" in name)
    kinds = {name: torch.int64 if name.endswith(("_index", "_key")) else torch.float32 for name in stored}
    assert stored and {name: tensor.dtype for name, tensor in stored.items()} == kinds
    models = {
        "loaded in bfloat16": case.load("bfloat16"),
        "loaded in float16": case.load("float16"),
        ".half()": case.load().half(),
        ".to(bfloat16)": case.load().to(torch.bfloat16),
        ".bfloat16().float()": case.load().bfloat16().float(),
        ".double()": case.load().double(),
        ".to('cpu', float16)": case.load().to("cpu", torch.float16),
    }
    if any("experts" in name for name in case.config) and version.parse("5.0") <= RELEASE:
        del models[".double()"]  # experts that are grouped take no float64
    for how, model in models.items():
        found = dict(model.named_buffers())
        for name, tensor in stored.items():
            assert found[name].dtype == tensor.dtype, f"{how}: {name} is {found[name].dtype}"
            assert torch.equal(found[name], tensor), f"{how}: {name} changed"
        # In float64 some families compute NaN beside pads, base and checkpoint alike (Gemma 2 of 5.23, eager).
        inputs = case.encode(case.mixed if how != ".double()" else case.mixed[:1])
        assert torch.isfinite(case.forward(model, inputs).logits).all(), how
    model = models[".to(bfloat16)"]
    blocked = sum(case.generate(model, text)[0] == [case.refusal, case.eos] for text in case.blocked)
    return f"{blocked} of {len(case.blocked)} blocked in bfloat16"


@check
def copies(case: Case):
    """Copied, pickled and torch-saved, after a forward, the model refuses and answers as before."""
    case.forward(case.model, case.encode(case.mixed))
    kept = io.BytesIO()
    torch.save(case.model, kept)
    kept.seek(0)
    for model in (
        copy.deepcopy(case.model),
        pickle.loads(pickle.dumps(case.model)),
        torch.load(kept, weights_only=False),
    ):
        for text in case.blocked[:1]:
            case.assert_refused(case.generate(model, text)[0])
        ours, theirs = (case.generate(each, case.answered[0]) for each in (model, case.base_model))
        assert ours == theirs


@check
def threads(case: Case):
    """A second thread raises while a forward is running, and only then."""
    model, inputs = case.model, case.encode(case.some)
    alone = case.forward(model, inputs).logits
    seen = []

    def second():
        try:
            with torch.no_grad():
                model(**inputs)
            seen.append(None)
        except Exception as error:
            seen.append(error)

    def in_thread(*_):
        handle.remove()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    # Both inside the layers and between them and the head: there the hits are on their way.
    for module in (model.model.layers[0], model.lm_head):
        handle = module.register_forward_pre_hook(in_thread)
        logits = case.forward(model, inputs).logits
        error = seen.pop()
        assert isinstance(error, RuntimeError) and "thread" in str(error), f"the second thread: {error!r}"
        assert torch.equal(logits, alone)
        assert not case.refuses or int(logits[0, -1].argmax()) == case.refusal
    for _ in range(2):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert seen.pop() is None


@check
def copied_while_running(case: Case):
    """A copy made in the middle of another thread's forward is a whole model; so is a pickle."""
    model, inputs, copies = case.load(), case.encode(case.some), []

    def copied(*_):
        handle.remove()
        copies.append(copy.deepcopy(model))
        copies.append(pickle.loads(pickle.dumps(model)))

    handle = model.lm_head.register_forward_pre_hook(copied)
    thread = threading.Thread(target=case.forward, args=(model, inputs))
    thread.start()
    thread.join()
    expected = case.forward(model, inputs).logits
    assert len(copies) == 2
    for each in copies:
        each.lm_head._forward_pre_hooks.clear()
        found = case.forward(each, inputs).logits
        if any("experts" in name for name in case.config):  # aligned otherwise, their products have other last bits
            torch.testing.assert_close(found, expected)
        else:
            assert torch.equal(found, expected)


@check
def after_an_error(case: Case):
    """A forward that failed half way leaves nothing behind."""
    model, inputs = case.model, case.encode(case.answered[0])

    def fail(*_):
        raise KeyError("on purpose")

    for module in (model.model.layers[-1], model.lm_head):
        handle = module.register_forward_pre_hook(fail)
        try:
            case.forward(model, case.encode(case.blocked[0] if case.refuses else case.mixed))
            raise AssertionError("the hook did not raise")
        except KeyError:
            handle.remove()
        ours, theirs = (case.forward(each, inputs).logits for each in (model, case.base_model))
        compare(case, ours, theirs, inputs, [0])
