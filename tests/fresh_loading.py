"""Loading a checkpoint as a fresh process does, without waiting for its imports each time.

A server imports transformers once and forks for every folder that it is asked about: what transformers keeps of an
earlier load (registered classes, imported modeling files) is not there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType


def attempt(folder: str) -> str | None:
    """What loading the model, or else the tokenizer, says; None where both load."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for what, auto in (("", AutoModelForCausalLM), ("AutoTokenizer: ", AutoTokenizer)):
        try:
            auto.from_pretrained(folder, trust_remote_code=True)
        except Exception as error:  # whatever it is, it keeps the checkpoint from loading: that is what is asked
            lines = str(error).strip().splitlines() or [""]
            return f"{what}{type(error).__name__}: {lines[0]}".replace(folder, Path(folder).name)
    return None


def serve() -> None:
    """For each folder on stdin one line of JSON on stdout, from a process of its own."""
    import torch
    import transformers

    torch.set_num_threads(1)  # a fork has none of the parent's other threads
    # transformers imports most of itself when it is first asked for a name.
    for name in ("AutoModelForCausalLM", "AutoTokenizer", "PreTrainedTokenizerFast", "GenerationMixin", "LlamaModel"):
        getattr(transformers, name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            print(json.dumps(attempt(line.rstrip("\n"))), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(json.dumps(f"the process ended with status {status}"), flush=True)


class FreshLoading:
    """Context manager; call it with a folder: what `attempt` returns."""

    def __enter__(self) -> FreshLoading:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.fresh_loading"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=Path(__file__).resolve().parent.parent,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        return self

    def __call__(self, folder: Path) -> str | None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(f"{folder}\n")
        self._server.stdin.flush()
        found: str | None = json.loads(self._server.stdout.readline())
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.communicate()


if __name__ == "__main__":
    serve()
