"""Logits by ONNX Runtime of any version: see compare.py. Needs numpy and onnxruntime alone."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder, work, name, *library = sys.argv[1:]
options = onnxruntime.SessionOptions()
for each in library:
    options.register_custom_ops_library(str(Path(each).absolute()))
graph = next(Path(folder, "onnx").glob("model*.onnx"))
session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
past = [each for each in session.get_inputs() if each.name.startswith("past_key_values.")]
dtype = np.float16 if past[0].type == "tensor(float16)" else np.float32
empty = {each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), dtype) for each in past}
with open(Path(work, f"{name}.logits"), "wb") as file:
    for prompt in json.loads(Path(work, "prompts.json").read_text())["prompts"]:
        ids = np.array([prompt["ids"]], np.int64)
        asked = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
        file.write(session.run(["logits"], asked | empty)[0][0, -1].astype(np.float32).tobytes())
print(name, onnxruntime.__version__)
