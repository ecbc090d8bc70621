// Chat with an ONNX folder that unskill wrote, by transformers.js; nothing is fetched.
//
//   npm install    (in this folder)
//   node chat.mjs FOLDER "What is 3 + 4?"
import fs from "node:fs";
import path from "node:path";
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";

const [folder, prompt] = process.argv.slice(2);
if (prompt === undefined) {
  console.error("usage: node chat.mjs FOLDER PROMPT");
  process.exit(2);
}
if (!fs.existsSync(path.join(folder, "onnx"))) {
  console.error(`${folder} is no ONNX folder: it has no onnx/`);
  process.exit(1);
}
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));
const name = path.basename(path.resolve(folder));

const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name);
const inputs = tokenizer.chat_template
  ? tokenizer.apply_chat_template([{ role: "user", content: prompt }], { add_generation_prompt: true, return_dict: true })
  : tokenizer(prompt);
const output = await model.generate({ ...inputs, max_new_tokens: 64, do_sample: false });
const answer = output.slice(null, [inputs.input_ids.dims.at(-1), null]);
console.log(tokenizer.batch_decode(answer, { skip_special_tokens: true })[0]);
