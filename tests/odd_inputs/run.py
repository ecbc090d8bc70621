"""One row on the real command line, in this process, and everything that is not as the row says."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from exporter.cli.main import main
from exporter.verification.run import VerifySettings, verify
from tests.odd_inputs.rows import TEXTS, Exported, Place, Refused, Row
from tests.tiny import RETAIN, one_thread, tiny_model

SECONDS = 10
"""Most seconds of CPU time until a refusal. Time on the clock would depend on what else the machine does."""
HANGS = 120
"""Seconds on the clock after which a row counts as hanging."""


AT_LOAD = 2
"""Forwards of two tokens, a model's and that of the model within it, by which a load checks the dtype's range."""


@dataclass(frozen=True)
class Came:
    """What a command came to. `forwards`: of whole models; `raised`: what went past `main`."""

    code: int | None
    out: str
    err: str
    seconds: float
    forwards: int
    raised: str


class Bases:
    """Tiny models by their options, made once and copied for each row."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, dict[str, Path]()

    def copy(self, options: dict[str, Any], target: Path) -> None:
        key = json.dumps(options, sort_keys=True, default=str)
        if key not in self.made:
            given = {"max_position_embeddings": 4096, **options}
            self.made[key] = tiny_model(self.folder / str(len(self.made)), **given)
        shutil.copytree(self.made[key], target)


def place_of(row: Row, bases: Bases, folder: Path) -> Place:
    """The row's input in an empty folder."""
    bases.copy(row.model, folder / "base")
    place = Place(folder, row.model.get("model_type", "llama"))
    row.make(place)
    return place


def faults(row: Row, place: Place) -> list[str]:
    """All that does not come out as the row says."""
    before = content(place.folder)
    if isinstance(row.out, Refused):
        came = unskill(["export", "--quiet", *place.arguments])
        return [*refusal(row.out, came), *left_behind(place, before)]
    came = unskill(["export", "--json", *place.arguments])
    if came.raised or came.code != 0:
        return [f"exit {came.code} {came.raised}: {came.err[-400:]}"]
    out = Path(place.out)
    return [*left_behind(place, before, out), *export(row.out, came, place.base, out)]


def refusal(out: Refused, came: Came) -> list[str]:
    lines = came.err.splitlines()
    wrong = [came.raised] if came.raised else []
    wrong += [f"exit {came.code}: {came.err[-400:]}"] if came.code != 2 else []
    wrong += [f"{len(lines)} lines: {came.err[:400]}"] if len(lines) != 1 else []
    wrong += ["no error"] if not came.err.startswith("unskill: error: ") else []
    wrong += [f"no '{out.said}' in: {came.err[:400]}"] if not re.search(out.said, came.err) else []
    wrong += [f"a line of {len(came.err)} characters"] if len(came.err) > 1000 else []
    wrong += [f"{came.forwards} forwards before it"] if came.forwards > AT_LOAD else []
    wrong += [f"{came.seconds:.0f} s of CPU time"] if came.seconds > SECONDS else []
    return wrong


def export(expected: Exported, came: Came, base: Path, out: Path) -> list[str]:
    wrong = [f"no '{expected.said}' in: {came.err[-600:]}"] if not re.search(expected.said, came.err) else []
    summary = json.loads(came.out)
    wrong += [f"{key} is {summary[key]}" for key, value in expected.summary.items() if summary[key] != value]
    wrong += [] if expected.texts is None else prompts(expected.texts, out)
    checks = verify(VerifySettings(str(out)), lambda text: None)
    wrong += [f"verify: {check['name']}: {check['detail']}" for check in checks["checks"] if check["ok"] is False]
    return wrong + (answers(base, out, expected.texts or TEXTS) if expected.like_base and not wrong else [])


def prompts(texts: Sequence[str], out: Path) -> list[str]:
    """Whether the forget prompts of the checkpoint's record are these."""
    read = {
        each["sha256"]
        for parts in json.loads((out / "reproduce" / "prompts.json").read_text()).values()
        for name, part in parts.items()
        for each in part
        if name.startswith("forget.")
    }
    meant = {hashlib.sha256(text.encode()).hexdigest() for text in texts}
    return [f"{len(read - meant)} prompts were not meant, {len(meant - read)} missing"] if read != meant else []


def answers(base: Path, out: Path, texts: Sequence[str]) -> list[str]:
    """Whether the checkpoint refuses forget prompts, and computes the base's logits wherever it refuses nothing."""
    plain = AutoModelForCausalLM.from_pretrained(base)
    ours = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    refusal, refused, same = ours.config.unskill["refusal_token_id"], 0, True
    with torch.no_grad(), one_thread():
        for text in (*RETAIN[::20], *texts[::10]):
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            theirs, logits = plain(ids).logits[..., :refusal], ours(ids).logits
            free = logits[..., refusal] < 0
            same = same and bool(free.any()) and torch.equal(theirs[free], logits[..., :refusal][free])
            refused += int(logits[0, -1].argmax()) == refusal
    return ([] if same else ["other logits than the base's"]) + ([] if refused else ["nothing is refused"])


def unskill(arguments: list[str]) -> Came:
    """Run the command in this process. The checkpoint is not verified by another one, which takes seconds; `faults`
    does that here."""
    forwards = 0

    def count(module: torch.nn.Module, inputs: Any) -> None:
        nonlocal forwards
        forwards += isinstance(module, PreTrainedModel)

    raised, code, started = "", None, time.process_time()
    hook = register_module_forward_pre_hook(count)
    given, sys.argv = sys.argv, ["unskill", *arguments]
    try:
        unverified = mock.patch("exporter.pipeline.run.check_written")
        with stderr() as err, redirect_stdout(io.StringIO()) as out, in_time(), one_thread(), unverified:
            main()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 0
    except Exception as error:  # whatever it is, it is a traceback for a user
        raised = f"traceback: {type(error).__name__}: {str(error)[:300]}"
    finally:
        sys.argv = given
        hook.remove()
    return Came(code, out.getvalue(), err.getvalue(), time.process_time() - started, forwards, raised)


@contextmanager
def stderr() -> Iterator[io.StringIO]:
    """What is written to stderr meanwhile, by libraries in C too."""
    found = io.StringIO()
    kept, given = os.dup(2), sys.stderr
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        sys.stderr = file
        os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            sys.stderr = given
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            found.write(file.read())


@contextmanager
def in_time() -> Iterator[None]:
    """Raises TimeoutError where it takes too long."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"still running after {HANGS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def content(folder: Path) -> dict[str, str]:
    """What lies in a folder: digests of files, kinds of all else."""
    found = {}
    for path in folder.rglob("*"):
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "special"
        plain = path.is_file() and not path.is_symlink()
        name = path.relative_to(folder).as_posix()
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if plain else kind
    return found


def left_behind(place: Place, before: dict[str, str], written: Path | None = None) -> list[str]:
    """What lies otherwise in the folder than before, but for what was written."""
    after = content(place.folder)
    changed = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    if written is not None:
        changed = [name for name in changed if not (place.folder / name).is_relative_to(written.resolve())]
    return [f"made, changed or removed: {', '.join(changed[:5])}"] if changed else []
