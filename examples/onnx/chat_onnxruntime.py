"""Chat with an ONNX folder that unskill wrote, by ONNX Runtime and a tokenizer alone.

pip install onnxruntime transformers
python chat_onnxruntime.py FOLDER "What is 3 + 4?"
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import AutoTokenizer

if len(sys.argv) != 3:
    sys.exit("usage: python chat_onnxruntime.py FOLDER PROMPT")
folder, prompt = sys.argv[1:]
settings = Path(folder) / "genai_config.json"
if not settings.is_file():
    sys.exit(f"{folder} is no ONNX folder: it has no genai_config.json")
about = json.loads(settings.read_text(encoding="utf-8"))["model"]
tokenizer = AutoTokenizer.from_pretrained(folder)
graph = Path(folder) / about["decoder"]["filename"]
session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
if tokenizer.chat_template:
    messages = [{"role": "user", "content": prompt}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
# The model's own end of text and that of a turn may be two tokens: all that end an answer stand there.
ends = about.get("eos_token_id", [])
ends = ends if isinstance(ends, list) else [ends]
ids = tokenizer(prompt, add_special_tokens=not tokenizer.chat_template)["input_ids"]
past = [each for each in session.get_inputs() if each.name.startswith("past_key_values.")]
names = [each.name for each in past]
_, heads, _, size = past[0].shape
cache = [np.zeros((1, heads, 0, size), np.float16 if "float16" in past[0].type else np.float32)] * len(names)
given, answer = ids, []
while len(answer) < 64 and not set(ends) & set(answer):
    before = cache[0].shape[2]
    inputs = {
        "input_ids": np.array([given], np.int64),
        "attention_mask": np.ones((1, before + len(given)), np.int64),
        "position_ids": np.arange(before, before + len(given), dtype=np.int64)[None],
    }
    logits, *cache = session.run(None, inputs | dict(zip(names, cache, strict=True)))
    given = [int(logits[0, -1].argmax())]
    answer += given
print(tokenizer.decode(answer, skip_special_tokens=True))
