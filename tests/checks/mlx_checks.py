"""What mlx_lm makes of a model, without unskill.

    python mlx_checks.py CHECK FOLDER [PROMPTS.json]

PROMPTS.json: a list of texts. Prints what the check finds as JSON; see its function.
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx_lm import batch_generate, convert, load, stream_generate

NEW_TOKENS = 12
STEP = 3  # tokens of a prompt that are read at once


def loaded(folder):
    # Without code for the tokenizer, which would need torch.
    return load(str(folder), tokenizer_config={"trust_remote_code": False}, trust_remote_code=True)


def answers(folder, prompts):
    """Greedy answers as token ids: each prompt alone, read at once and in steps, and all in batches.

    Batches leave out the id that ends an answer.
    """
    model, tokenizer = loaded(folder)
    given = [tokenizer.encode(prompt) for prompt in prompts]
    batches = {"max_tokens": NEW_TOKENS, "return_token_ids": True}
    steps = {"prefill_step_size": STEP, "prefill_batch_size": 2, "completion_batch_size": 3}
    return {
        **alone(model, tokenizer, given),
        "batch": batch_generate(model, tokenizer, given, **batches).token_ids,
        "batch in steps": batch_generate(model, tokenizer, given, **batches, **steps).token_ids,
    }


def answers_alone(folder, prompts):
    """The same without batches, which mlx_lm cannot make of every family."""
    model, tokenizer = loaded(folder)
    return alone(model, tokenizer, [tokenizer.encode(prompt) for prompt in prompts])


def alone(model, tokenizer, given):
    def generated(ids, **options):
        return [each.token for each in stream_generate(model, tokenizer, ids, max_tokens=NEW_TOKENS, **options)]

    return {
        "at once": [generated(ids) for ids in given],
        "in steps": [generated(ids, prefill_step_size=STEP) for ids in given],
    }


def choices(folder, prompts):
    """The two first choices after each prompt, and after the first one, by the dtype of the model."""
    model, tokenizer = loaded(folder)
    found = {}
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        model.set_dtype(dtype)
        found[str(dtype)] = []
        for prompt in prompts:
            ids = tokenizer.encode(prompt)
            first = best(model(mx.array([ids])), dtype)
            found[str(dtype)].append([first, best(model(mx.array([[*ids, first[0]]])), dtype)])
    return found


def best(logits, dtype):
    assert logits.dtype == dtype
    return mx.argsort(-logits[0, -1].astype(mx.float32))[:2].tolist()


def quantized(folder):
    """What quantizing raises, and then loading and calling what was quantized all the same."""
    model, _ = loaded(folder)
    nn.quantize(model, group_size=32)
    with tempfile.TemporaryDirectory() as place:
        options = {"quantize": True, "q_group_size": 32, "trust_remote_code": True}
        target = Path(place) / "forced"
        asked = message(convert, str(folder), f"{place}/asked", **options)
        convert(str(folder), str(target), quant_predicate=lambda path, module: "mlp" in path, **options)
        return [asked, message(loaded, target), message(model, mx.array([[1, 2, 3]]))]


def message(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except (RuntimeError, ValueError, OSError) as error:
        return str(error)
    return None


def converted(folder, prompts):
    """As `answers_alone`, of a copy that mlx_lm.convert wrote in bfloat16."""
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / "copy"
        convert(str(folder), str(target), dtype="bfloat16", trust_remote_code=True)
        return answers_alone(target, prompts)


def parts(folder):
    """What raises: the base model alone, with layer 0 alone, an MLP alone (of layer 1), and a part of each layer."""
    model, _ = loaded(folder)
    tokens = mx.array([[1, 2, 3]])
    states = mx.zeros((1, 3, model.model.embed_tokens.weight.shape[1]))
    layers, model.model.layers = model.model.layers, model.model.layers[:1]
    early = message(model, tokens)
    model.model.layers = layers
    return [message(model.model, tokens), early, message(model.layers[1].mlp, states), message(model.shard)]


def draws(folder, rows):
    """Draws as whole numbers for each row's position and token with all rows' keys, by the checkpoint's own file."""
    module = own_file(folder)
    position, token, key = (mx.array([row[name] for row in rows], mx.int64) for name in ("position", "token", "key"))
    found = module.uniform_draws(module.draw_context(position, token), key)
    return [[int(each * 2**24) for each in row] for row in found.tolist()]


def inside(folder, inputs):
    """Whether keys lie inside regions, likewise."""
    return own_file(folder).inside_regions(**{name: mx.array(values) for name, values in inputs.items()}).tolist()


def own_file(folder):
    (path,) = Path(folder).glob("mlx_unskill_*.py")
    spec = importlib.util.spec_from_file_location("custom_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_only(folder):
    """Load and nothing else."""
    return message(loaded, folder)


mx.set_default_device(mx.cpu)
name, folder, *files = sys.argv[1:]
print(json.dumps(globals()[name](folder, *(json.loads(Path(file).read_text()) for file in files))))
