// Logits by transformers.js: see compare.py. Needs @huggingface/transformers alone.
import fs from "node:fs";
import path from "node:path";
import { AutoModelForCausalLM, Tensor, env } from "@huggingface/transformers";

const [folder, work, name] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));
const model = await AutoModelForCausalLM.from_pretrained(path.basename(path.resolve(folder)));
const { prompts } = JSON.parse(fs.readFileSync(path.join(work, "prompts.json"), "utf8"));
const out = fs.openSync(path.join(work, `${name}.logits`), "w");
for (const { ids } of prompts) {
  const input_ids = new Tensor("int64", ids.map(BigInt), [1, ids.length]);
  const attention_mask = new Tensor("int64", ids.map(() => 1n), [1, ids.length]);
  const { logits } = await model({ input_ids, attention_mask });
  const row = logits.slice(null, -1, null).to("float32").data;
  fs.writeSync(out, new Uint8Array(row.buffer, row.byteOffset, row.byteLength));
}
fs.closeSync(out);
console.log(name, env.version);
