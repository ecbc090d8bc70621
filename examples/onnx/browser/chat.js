// The page: ?model=NAME names a model of the server, &prompt=TEXT asks it at once.
const address = new URLSearchParams(location.search);
const model = address.get("model");
const [form, prompt, button, answer, state, result] = [
  "form", "#prompt", "button", "#answer", "#state", "#result",
].map((name) => document.querySelector(name));

// In a worker, so that the page can be scrolled while the model computes.
const worker = new Worker("worker.js", { type: "module" });
let loaded = false;
const heard = {
  progress: ({ text }) => (state.textContent = text),
  ready: () => {
    loaded = true;
    state.textContent = "";
    button.disabled = false;
    prompt.focus();
    if (address.has("prompt")) {
      prompt.value = address.get("prompt");
      form.requestSubmit();
    }
  },
  part: ({ text }) => (answer.textContent += text),
  answer: ({ found }) => {
    answer.textContent = found.answer;
    const seconds = (found.milliseconds.answer / 1000).toFixed(1);
    state.textContent = `${found.answer_ids.length} tokens in ${seconds} s, ${found.threads} thread(s), ${found.dtype}`;
    result.textContent = JSON.stringify(found);
    button.disabled = false;
  },
  error: ({ message }) => {
    state.textContent = message;
    result.textContent = JSON.stringify({ model, error: message });
    button.disabled = !loaded; // another question may be answered
  },
};
worker.onmessage = ({ data }) => heard[data.kind](data);
worker.onerror = (event) => heard.error({ message: event.message ?? "the worker cannot be loaded" });

form.onsubmit = (event) => {
  event.preventDefault();
  button.disabled = true;
  answer.textContent = result.textContent = "";
  state.textContent = "reading the prompt";
  worker.postMessage({ kind: "ask", prompt: prompt.value });
};

document.querySelector("#name").textContent = model ?? "No model";
if (model === null) {
  heard.error({ message: "Name a model in the address: ?model=NAME" });
} else {
  state.textContent = "loading";
  worker.postMessage({ kind: "load", model });
}
