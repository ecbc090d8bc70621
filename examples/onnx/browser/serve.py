"""Serve the page of this folder, with ONNX folders that unskill wrote, to a browser on this machine.

npm install    (in examples/onnx)
python serve.py FOLDER...

The page has everything from here: nothing is fetched from elsewhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

HERE = Path(__file__).resolve().parent
PACKAGES = HERE.parent / "node_modules"
NEEDED = Path("@huggingface") / "transformers" / "dist" / "transformers.min.js"


class Handler(SimpleHTTPRequestHandler):
    """Files of the page at /, of npm packages at /packages/, of a model at /models/NAME/."""

    # Browsers take a module only for JavaScript and stream only WASM, and systems know neither of the two for sure.
    extensions_map = {
        ".css": "text/css",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript",
        ".json": "application/json",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        "": "application/octet-stream",
    }

    def __init__(self, *given: object, roots: Mapping[str, Path], **named: object) -> None:
        self.roots = roots
        super().__init__(*given, **named)

    def translate_path(self, path: str) -> str:
        """The file of an address: below the folder whose prefix is the longest that fits."""
        path = unquote(path.split("?", 1)[0].split("#", 1)[0])
        prefix = max((each for each in self.roots if path.startswith(each)), key=len)
        self.directory = str(self.roots[prefix])
        return super().translate_path("/" + quote(path[len(prefix) :]))

    def end_headers(self) -> None:
        # A page may have threads for its WASM where no page of another origin shares its process.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def list_directory(self, path: object) -> None:
        self.send_error(404)

    def log_message(self, *given: object) -> None:
        pass


def roots(models: Mapping[str, Path], packages: Path) -> dict[str, Path]:
    """Where the files of each address are. models: ONNX folders by the name that the page asks for."""
    found = {"/": HERE, "/packages/": packages}
    return found | {f"/models/{name}/": folder for name, folder in models.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="+", type=Path, help="ONNX folder that unskill wrote")
    parser.add_argument("--packages", type=Path, default=PACKAGES, help="node_modules with @huggingface/transformers")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    if not (given.packages / NEEDED).is_file():
        sys.exit(f"{given.packages} has no {NEEDED}: npm install in {HERE.parent}")
    models: dict[str, Path] = {}
    for folder in map(Path.resolve, given.folder):
        if not (folder / "onnx").is_dir():
            sys.exit(f"{folder} is no ONNX folder: it has no onnx/")
        if models.setdefault(folder.name, folder) != folder:
            sys.exit(f"{models[folder.name]} and {folder} have one name, by which the page asks for them: rename one")
    handler = partial(Handler, roots=roots(models, given.packages.resolve()))
    # For this machine alone: a browser gives threads to a page from localhost, or by HTTPS.
    try:
        server = ThreadingHTTPServer(("127.0.0.1", given.port), handler)
    except OSError as error:
        sys.exit(f"--port {given.port}: {error.strerror}; give another one")
    with server:
        for name in models:
            print(f"http://localhost:{server.server_port}/?model={quote(name)}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
