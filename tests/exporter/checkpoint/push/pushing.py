"""A Hub on loopback, the command line and clients of it, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.hub_requests import User
from tests.hub_server import HubServer

ROOT = Path(__file__).resolve().parents[4]
CLIENT = ROOT / "tests" / "checks" / "hub_round_trip.py"
DRIVER = Path(__file__).with_name("driver.py")
# Searched for in all that is printed and written.
TOKEN, READ_TOKEN, OTHER_TOKEN = "hf_MARKERthatNobodyMaySee", "hf_MARKERthatOnlyReads", "hf_MARKERofSomebodyElse"
USERS = {
    TOKEN: User("me", orgs=("club",)),
    READ_TOKEN: User("me", write=False),
    OTHER_TOKEN: User("somebody"),
}


@dataclass(frozen=True)
class Done:
    """A process that has ended."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on stderr: the error, where there is one."""
        lines = [line for line in self.err.strip().splitlines() if not line.startswith("waited ")]
        return lines[-1] if lines else ""

    @property
    def json(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        found: dict[str, Any] = json.loads(self.out)
        return found


class Site:
    """A Hub, the machine that pushes to it (`home`), and those that load from it."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.hub, self.folder, self.home = hub, folder, folder / "home"

    def unskill(
        self,
        *arguments: object,
        token: str | None = TOKEN,
        real: bool = False,
        variables: dict[str, str] | None = None,
    ) -> Done:
        """Run the command. real: as users do, and not by `driver.py`."""
        environment = {**clean(os.environ), **self.hub.environment(self.home, token), "PYTHONPATH": str(ROOT)}
        how = ["-m", "exporter"] if real else [str(DRIVER)]
        return self.run([sys.executable, *how, *map(str, arguments)], {**environment, **(variables or {})})

    def push(self, *arguments: object, **how: Any) -> Done:
        return self.unskill("push", *arguments, **how)

    def answers(
        self,
        model: object,
        prompts: Path,
        *flags: object,
        python: Path | str = sys.executable,
        token: str | None = TOKEN,
        online: bool = True,
    ) -> dict[str, Any]:
        """What `hub_round_trip.py` prints, on a machine that has nothing of it yet and nothing of unskill."""
        home = self.folder / f"client-{len(self.hub.requests)}-{len(list(self.folder.iterdir()))}"
        home.mkdir()
        environment = {**clean(os.environ), **self.hub.environment(home, token), "OMP_NUM_THREADS": "1"}
        environment |= {"HF_MODULES_CACHE": str(home / "modules")} | ({} if online else {"HF_HUB_OFFLINE": "1"})
        command = [str(python), "-I", str(CLIENT), str(model), str(prompts), *map(str, flags)]
        return self.run(command, environment, cwd=home).json

    def run(self, command: list[str], environment: dict[str, str], cwd: Path | None = None) -> Done:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            cwd=cwd or self.folder,
            timeout=900,
        )
        for text in (done.stdout, done.stderr):
            assert "hf_MARKER" not in text, "a token was printed"
        return Done(done.returncode, done.stdout, done.stderr)


def clean(environment: Any) -> dict[str, str]:
    """Without what would tell a process of another Hub, a token or this project."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and name != "PYTHONPATH"
    }


def names(folder: Path) -> set[str]:
    """All files of a folder, by their paths inside it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def edit(out: Path, name: str, more: str) -> None:
    """Change a small file as an export would have written it."""
    (out / name).write_text((out / name).read_text() + more)
    path = out / "reproduce" / "hashes.json"
    hashes = json.loads(path.read_text())
    hashes[name] = sha256((out / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(hashes, indent=2) + "\n")
