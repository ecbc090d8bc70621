"""The server of examples/onnx/browser, as a user starts it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from examples.onnx.browser.serve import NEEDED
from tests.exporter.onnx.consumers import EXAMPLES

SERVE = [sys.executable, "-I", str(EXAMPLES / "browser" / "serve.py")]


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder with an ONNX folder, packages and a file that is neither's."""
    (tmp_path / "secret.txt").write_text("nobody's")
    (tmp_path / "a (good) model" / "onnx").mkdir(parents=True)
    (tmp_path / "a (good) model" / "config.json").write_text("{}")
    script = tmp_path / "packages" / NEEDED
    script.parent.mkdir(parents=True)
    script.write_text("export {};")
    return tmp_path


def test_serves_the_page_the_packages_and_the_models(places: Path) -> None:
    command = [*SERVE, "a (good) model", "--packages", "packages", "--port", "0"]
    with subprocess.Popen(command, cwd=places, stdout=subprocess.PIPE, text=True) as process:
        try:
            page = process.stdout.readline().strip()
            base, query = page.split("/?")
            assert query == "model=a%20%28good%29%20model"
            with urlopen(page) as found:
                assert b'src="chat.js"' in found.read()
                # Without these a page has no threads.
                assert found.headers["Cross-Origin-Opener-Policy"] == "same-origin"
                assert found.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            for path, kind, content in (
                ("models/a%20(good)%20model/config.json", "application/json", b"{}"),
                (f"packages/{NEEDED.as_posix()}", "text/javascript", b"export {};"),
            ):
                with urlopen(f"{base}/{path}") as found:
                    assert (found.headers["Content-Type"], found.read()) == (kind, content)
            # Neither what is beside a folder nor what is in it.
            for path in ("../secret.txt", "%2e%2e/secret.txt", "%252e%252e/secret.txt", ""):
                with pytest.raises(HTTPError, match="404"):
                    urlopen(f"{base}/models/a%20(good)%20model/{path}")
        finally:
            process.terminate()


def test_a_taken_port_and_two_folders_of_one_name_are_one_line_each(places: Path) -> None:
    (places / "other" / "a (good) model" / "onnx").mkdir(parents=True)
    command = [*SERVE, "a (good) model", "--packages", "packages", "--port"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run([*command, port], cwd=places, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1) and f"--port {port}:" in done.stderr
    command = [*SERVE, "a (good) model", "other/a (good) model", "--packages", "packages", "--port", "0"]
    done = subprocess.run(command, cwd=places, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1) and "have one name" in done.stderr


@pytest.mark.parametrize(
    ("folder", "packages", "message"),
    [("a (good) model", ".", "npm install in"), ("packages", "packages", "packages is no ONNX folder")],
)
def test_says_what_is_missing(folder: str, packages: str, message: str, places: Path) -> None:
    command = [*SERVE, folder, "--packages", packages, "--port", "0"]
    done = subprocess.run(command, cwd=places, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
