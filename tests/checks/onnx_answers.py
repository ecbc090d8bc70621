"""Greedy answers of an ONNX folder by ONNX Runtime, of any release, without unskill, torch and transformers.

    python onnx_answers.py FOLDER PROMPTS.json NEW_TOKENS [LIBRARY]

PROMPTS.json: a list of lists of token ids. LIBRARY: that of our operators, whose kernels are used then instead of the
bodies that the graph brings along. Prints the answers, lists of token ids, and which of our operators ran as kernels.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime


def answer(session, ids, new_tokens, ends):
    past = [each for each in session.get_inputs() if each.name.startswith("past_key_values.")]
    dtype = np.float16 if past[0].type == "tensor(float16)" else np.float32
    cache = [np.zeros((1, each.shape[1], 0, each.shape[3]), dtype) for each in past]
    given, found = ids, []
    while len(found) < new_tokens and not set(ends) & set(found):
        before = cache[0].shape[2]
        inputs = {
            "input_ids": np.array([given], np.int64),
            "attention_mask": np.ones((1, before + len(given)), np.int64),
            "position_ids": np.arange(before, before + len(given), dtype=np.int64)[None],
        }
        inputs.update(zip((each.name for each in past), cache, strict=True))
        logits, *cache = session.run(None, inputs)
        given = [int(logits[0, -1].argmax())]
        found += given
    return found


folder, prompts, new_tokens, *library = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.enable_profiling = True
options.profile_file_prefix = str(Path(tempfile.mkdtemp()) / "profile")
for path in library:
    options.register_custom_ops_library(path)
graph = next((Path(folder) / "onnx").glob("*.onnx"))
session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
ends = [json.loads((Path(folder) / "config.json").read_text())["unskill"]["eos_token_id"]]
found = [answer(session, ids, int(new_tokens), ends) for ids in json.loads(Path(prompts).read_text())]
events = json.loads(Path(session.end_profiling()).read_text())
ran = {event.get("args", {}).get("op_name") for event in events}
ours = sorted(ran & {"KeySpaceDetect", "NeuronAdjust", "NeuronDraws", "RegionDetect"})
print(json.dumps({"release": onnxruntime.__version__, "answers": found, "operators": ours}))
