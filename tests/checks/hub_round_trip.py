"""Answers of a checkpoint, loaded by its folder or Hub id where nothing of unskill can be imported.

    python -I hub_round_trip.py MODEL PROMPTS.json [--revision COMMIT] [--push-to REPO]

Prints one JSON object: what follows each text, by `generate` and by a pipeline. With --push-to, model and tokenizer
are then pushed by their own push_to_hub. Needs torch and transformers only, of any release from 4.48 on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

# Where this runs in the environment of the project itself.
OURS = ("exporter", "custom_modeling")
sys.modules.update(dict.fromkeys(OURS, None))

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline  # noqa: E402

NEW_TOKENS = 12


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--revision")
    parser.add_argument("--push-to")
    given = parser.parse_args()
    torch.manual_seed(0)
    prompts = json.loads(given.prompts.read_text(encoding="utf-8"))
    pinned = {"revision": given.revision} if given.revision else {}
    tokenizer = AutoTokenizer.from_pretrained(given.model, trust_remote_code=True, **pinned)
    model = AutoModelForCausalLM.from_pretrained(given.model, trust_remote_code=True, **pinned).eval()
    chain = pipeline("text-generation", model=given.model, trust_remote_code=True, **pinned)
    found = {"refusal": model.config.unskill["refusal"], "code": type(model).__module__}
    for kind in ("blocked", "answered"):
        found[kind] = [answer(model, tokenizer, text, prompts["add_special_tokens"]) for text in prompts[kind]]
        found[f"{kind} by pipeline"] = [piped(chain, text, prompts["add_special_tokens"]) for text in prompts[kind]]
    if given.push_to:
        model.push_to_hub(given.push_to, private=True)
        tokenizer.push_to_hub(given.push_to, private=True)
    assert all(sys.modules[name] is None for name in OURS)
    print(json.dumps(found))


def answer(model, tokenizer, text, special):
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=special)
    output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def piped(chain, text, special):
    (found,) = chain(
        text, max_new_tokens=NEW_TOKENS, do_sample=False, return_full_text=False, add_special_tokens=special
    )
    return found["generated_text"]


if __name__ == "__main__":
    main()
