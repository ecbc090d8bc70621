// Greedy answers of an ONNX folder by transformers.js: node transformers_js_answers.mjs FOLDER PROMPTS.json NEW_TOKENS
//
// PROMPTS.json: a list of lists of token ids. Prints a list of lists of token ids.
import fs from "node:fs";
import path from "node:path";
import { AutoModelForCausalLM, Tensor, env } from "@huggingface/transformers";
const [folder, prompts, count] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder);
const model = await AutoModelForCausalLM.from_pretrained(path.basename(folder));
const answers = [];
for (const ids of JSON.parse(fs.readFileSync(prompts))) {
  const given = (value) => new Tensor("int64", BigInt64Array.from(value, BigInt), [1, ids.length]);
  const inputs = { input_ids: given(ids), attention_mask: given(ids.map(() => 1)) };
  const output = await model.generate({ ...inputs, max_new_tokens: Number(count), do_sample: false });
  answers.push(output.tolist()[0].slice(ids.length).map(Number));
}
console.log(JSON.stringify({ answers }));
