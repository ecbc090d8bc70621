"""Chat with an ONNX folder that unskill wrote, by ONNX Runtime and a tokenizer alone.

pip install onnxruntime transformers
python chat_onnxruntime.py FOLDER "What is 3 + 4?"
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import AutoTokenizer

folder, prompt = sys.argv[1:3]
tokenizer = AutoTokenizer.from_pretrained(folder)
session = onnxruntime.InferenceSession(str(Path(folder) / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
if tokenizer.chat_template:
    messages = [{"role": "user", "content": prompt}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
ids = tokenizer(prompt, add_special_tokens=not tokenizer.chat_template)["input_ids"]
names = [each.name for each in session.get_inputs() if each.name.startswith("past_key_values.")]
shape = session.get_inputs()[-1].shape  # batch, heads, past, size
cache = [np.zeros((1, shape[1], 0, shape[3]), np.float32)] * len(names)
given, answer = ids, []
while len(answer) < 64 and tokenizer.eos_token_id not in answer:
    past = cache[0].shape[2]
    inputs = {
        "input_ids": np.array([given], np.int64),
        "attention_mask": np.ones((1, past + len(given)), np.int64),
        "position_ids": np.arange(past, past + len(given), dtype=np.int64)[None],
    }
    logits, *cache = session.run(None, inputs | dict(zip(names, cache, strict=True)))
    given = [int(logits[0, -1].argmax())]
    answer += given
print(tokenizer.decode(answer, skip_special_tokens=True))
