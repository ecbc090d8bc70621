"""Greedy answers of a model by mlx_lm, without unskill: alone, with the prompt in chunks, and in a batch.

    python mlx_answers.py FOLDER PROMPTS.json NEW_TOKENS

PROMPTS.json: a list of texts. Writes {"release", "alone", "chunks", "batch"} as JSON, each a list of token ids for
every prompt, the id that ended an answer included.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
from mlx_lm import batch_generate, load, stream_generate

mx.set_default_device(mx.cpu)
folder, prompts, new_tokens = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), int(sys.argv[3])
model, tokenizer = load(folder, tokenizer_config={"trust_remote_code": False}, trust_remote_code=True)
given = [tokenizer.encode(prompt) for prompt in prompts]


def answers(**options: int) -> list[list[int]]:
    return [
        [each.token for each in stream_generate(model, tokenizer, ids, max_tokens=new_tokens, **options)]
        for ids in given
    ]


found = {"alone": answers(), "chunks": answers(prefill_step_size=3)}
print(json.dumps({"release": version("mlx-lm"), **found}))
