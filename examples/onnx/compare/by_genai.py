"""Logits by onnxruntime-genai: see compare.py. Needs numpy and onnxruntime-genai alone."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai

folder, work, name = sys.argv[1:]
model = genai.Model(folder)
with open(Path(work, f"{name}.logits"), "wb") as file:
    for prompt in json.loads(Path(work, "prompts.json").read_text())["prompts"]:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=len(prompt["ids"]) + 1, do_sample=False)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(np.array(prompt["ids"], np.int32))
        file.write(np.asarray(generator.get_logits()).reshape(-1).astype(np.float32).tobytes())
print(name, genai.__version__)
