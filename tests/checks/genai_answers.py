"""Greedy answers of an ONNX folder by onnxruntime-genai, without unskill.

    python genai_answers.py FOLDER PROMPTS.json NEW_TOKENS

PROMPTS.json: a list of lists of token ids. Prints a list of lists of token ids.
"""

import json
import sys
from pathlib import Path

import onnxruntime_genai as genai


def answer(model, ids, new_tokens):
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + new_tokens, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(ids)
    found = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    return found


folder, prompts, new_tokens = sys.argv[1:]
model = genai.Model(folder)
found = [answer(model, ids, int(new_tokens)) for ids in json.loads(Path(prompts).read_text())]
print(json.dumps({"release": genai.__version__, "answers": found}))
