"""Chat with an exported checkpoint: python examples/quickstart.py build/demo/SmolLM2-no-maths"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
chat = []
print("One query a line; Ctrl-D ends.")
for query in sys.stdin:
    chat.append({"role": "user", "content": query.strip()})
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=200, do_sample=False, streamer=streamer)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    chat.append({"role": "assistant", "content": answer})
