"""The page of examples/onnx/browser in a real browser: transformers.js and WASM answer as torch does."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from examples.onnx.browser.serve import Handler, roots
from tests.exporter.onnx.conftest import Written
from tests.exporter.onnx.consumers import NODE_PACKAGES, answers, need_node_packages
from tests.exporter.reporting.test_browser import BROWSERS, DARK

pytestmark = pytest.mark.slow

# Uses the page as a reader does, in a frame as wide as a phone, and posts what the page has for programs.
USER = """<!doctype html><iframe width="390" height="844" src="{page}"></iframe><script type="module">
const frame = document.querySelector("iframe");
await new Promise((done) => (frame.onload = done));
const page = frame.contentDocument;
const until = async (found) => {{
  while (!found()) await new Promise((done) => setTimeout(done, 50));
}};
const result = page.querySelector("#result"), button = page.querySelector("button");
const results = [];
for (const prompt of {prompts}) {{
  await until(() => !button.disabled || result.textContent);
  if (button.disabled) break;
  page.querySelector("#prompt").value = prompt;
  button.click();
  await until(() => result.textContent);
  results.push({{ ...JSON.parse(result.textContent), shown: page.querySelector("#answer").textContent }});
}}
if (!results.length) results.push(JSON.parse(result.textContent));
const {{ clientWidth: width, scrollWidth: scroll }} = page.documentElement;
const {{ color: ink, backgroundColor: paper }} = getComputedStyle(page.body);
const looks = {{ width, scroll, ink, paper }};
await fetch("/user", {{ method: "POST", body: JSON.stringify({{ results, looks }}) }});
</script>"""


@contextmanager
def served(models: dict[str, Path], prompts: list[str]) -> Iterator[tuple[str, queue.Queue[Any]]]:
    """The address of a user of the first model, and where what he finds arrives."""
    posted: queue.Queue[Any] = queue.Queue()
    page = USER.format(page=f"/?model={next(iter(models))}", prompts=json.dumps(prompts)).encode()

    class WithUser(Handler):
        def do_GET(self) -> None:
            if self.path != "/user":
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page)

        def do_POST(self) -> None:
            posted.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(WithUser, roots=roots(models, NODE_PACKAGES))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}/user", posted
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def use(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """use(folder, prompts, flags...) is what the page of a model shows and how it looks."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is there")
    need_node_packages()

    def run(folder: Path, prompts: list[str], *flags: str, patience: float = 300) -> dict[str, Any]:
        profile = tmp_path_factory.mktemp("profile")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        # Names other than the server's lead nowhere: what the page needs it has from there.
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost", f"--user-data-dir={profile}"]
        with served({"tiny": folder}, prompts) as (address, posted), (profile / "log").open("w+b") as log:
            process = subprocess.Popen([*command, *flags, address], stdout=log, stderr=log)
            try:
                return posted.get(timeout=patience)
            except queue.Empty:
                log.seek(0)
                pytest.fail(f"the page has nothing to show after {patience} s: {log.read().decode()[-2000:]}")
            finally:
                process.terminate()
                process.wait(30)

    return run


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_page_answers_as_torch_does(
    dtype: str, use: Callable[..., dict[str, Any]], written: Callable[..., Written]
) -> None:
    exported, folder, _ = written("llama", "na+ksd", dtype)
    expected = answers(exported, exported.texts["blocked"][:1] + exported.texts["answered"])
    if dtype == "float16":  # which rounds otherwise: short answers only, of tokens that are far from the next best
        expected = [each for each in expected if len(each.ids) < 10]
    found = use(folder, [each.prompt for each in expected])["results"]
    assert len(found) == len(expected) > 1
    for each, torchs in zip(found, expected, strict=True):
        assert (each["prompt_ids"], each["answer_ids"]) == (torchs.prompt_ids, torchs.ids)
        assert each["answer"] == torchs.text
        assert each["dtype"] == {"float32": "fp32", "float16": "fp16"}[dtype]
    assert found[0]["shown"] == "Your query is not valid" not in [each["shown"] for each in found[1:]]


def test_page_in_the_dark_and_on_a_phone(use: Callable[..., dict[str, Any]], written: Callable[..., Written]) -> None:
    exported, folder, _ = written("llama", "na+ksd")
    light, dark = (use(folder, exported.texts["blocked"][:1], *flags)["looks"] for flags in ((), (DARK,)))
    assert light["width"] == light["scroll"] == 390
    assert (light["ink"], light["paper"]) == ("rgb(31, 35, 40)", "rgb(255, 255, 255)")
    assert (dark["ink"], dark["paper"]) == ("rgb(230, 237, 243)", "rgb(20, 24, 29)")


def test_page_says_what_keeps_it_from_loading(
    use: Callable[..., dict[str, Any]], written: Callable[..., Written], tmp_path: Path
) -> None:
    _, folder, _ = written("llama", "na+ksd")
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "onnx" / "model.onnx").unlink()
    (found,) = use(broken, ["Hello."])["results"]
    assert "model.onnx" in found["error"] and "answer" not in found
