"""Chat with an ONNX folder that unskill wrote, by onnxruntime-genai.

pip install onnxruntime-genai
python chat_genai.py FOLDER "What is 3 + 4?"
"""

import json
import sys
from pathlib import Path

import onnxruntime_genai as genai

if len(sys.argv) != 3:
    sys.exit("usage: python chat_genai.py FOLDER PROMPT")
folder, prompt = sys.argv[1:]
if not (Path(folder) / "genai_config.json").is_file():
    sys.exit(f"{folder} is no ONNX folder: it has no genai_config.json")
model = genai.Model(folder)
tokenizer = genai.Tokenizer(model)
if "chat_template" in json.loads((Path(folder) / "tokenizer_config.json").read_text(encoding="utf-8")):
    message = json.dumps([{"role": "user", "content": prompt}])
    prompt = tokenizer.apply_chat_template(messages=message, add_generation_prompt=True)
ids = tokenizer.encode(prompt)
parameters = genai.GeneratorParams(model)
parameters.set_search_options(max_length=len(ids) + 64, do_sample=False)
generator = genai.Generator(model, parameters)
generator.append_tokens(ids)
answer = []
while not generator.is_done():
    generator.generate_next_token()
    answer.append(generator.get_next_tokens()[0])
print(tokenizer.decode(answer))
