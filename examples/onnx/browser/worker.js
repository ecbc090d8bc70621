// Loads a model of this server and answers prompts, by transformers.js and WASM; nothing is fetched from elsewhere.
import { AutoModelForCausalLM, AutoTokenizer, TextStreamer, env } from "/packages/@huggingface/transformers/dist/transformers.min.js";

env.allowRemoteModels = false;
env.allowLocalModels = true; // which a browser does not by itself
env.localModelPath = "/models/";
env.useBrowserCache = false; // it would keep the model of this name when another one is served under it
const runtime = "/packages/onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify";
env.backends.onnx.wasm.wasmPaths = { mjs: `${runtime}.mjs`, wasm: `${runtime}.wasm` };
const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1;
env.backends.onnx.wasm.numThreads = threads;

const NEW_TOKENS = 64;
const milliseconds = {};
let name, tokenizer, model;

const say = (kind, rest = {}) => self.postMessage({ kind, ...rest });

async function timed(what, work) {
  const start = performance.now();
  const found = await work();
  milliseconds[what] = Math.round(performance.now() - start);
  return found;
}

async function load(given) {
  name = given;
  const progress_callback = ({ status, file, progress }) => {
    if (status === "progress") say("progress", { text: `loading ${file}: ${Math.floor(progress)} %` });
  };
  await timed("load", async () => {
    tokenizer = await AutoTokenizer.from_pretrained(name);
    model = await AutoModelForCausalLM.from_pretrained(name, { progress_callback });
  });
  say("ready");
}

async function ask(prompt) {
  const inputs = tokenizer.chat_template
    ? tokenizer.apply_chat_template([{ role: "user", content: prompt }], { add_generation_prompt: true, return_dict: true })
    : tokenizer(prompt);
  const streamer = new TextStreamer(tokenizer, {
    skip_prompt: true,
    skip_special_tokens: true,
    callback_function: (text) => say("part", { text }),
  });
  const output = await timed("answer", () =>
    model.generate({ ...inputs, max_new_tokens: NEW_TOKENS, do_sample: false, streamer }),
  );
  const count = inputs.input_ids.dims.at(-1);
  const ids = output.tolist()[0].map(Number);
  const answer = tokenizer.decode(ids.slice(count), { skip_special_tokens: true });
  const dtype = model.sessions.model.config.dtype;
  const found = { model: name, dtype, threads, milliseconds, prompt, answer };
  say("answer", { found: { ...found, prompt_ids: ids.slice(0, count), answer_ids: ids.slice(count) } });
}

self.onmessage = async ({ data }) => {
  try {
    await (data.kind === "load" ? load(data.model) : ask(data.prompt));
  } catch (error) {
    say("error", { message: String(error?.message ?? error) });
  }
};
