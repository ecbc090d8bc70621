"""A Hub on loopback, as far as huggingface_hub 0.36 to 2.4 need one to push and load models with Xet turned off.

It holds repos with their commits, checks tokens, writes down every request, and can be told to fail:

    with HubServer(folder, {"hf_...": User("me")}) as hub:
        hub.fail("PUT", "/storage/", status=503, times=2)
        subprocess.run(..., env={**os.environ, **hub.environment(home, "hf_...")})
        assert hub.repos["me/model"].private and hub.count("PUT", "/storage/") == 5
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.hub_calls import Calls
from tests.hub_requests import Fault, Request, User
from tests.hub_store import GITATTRIBUTES, Objects, Repo, Stored


class HubServer:
    """See the module. `users` by token; a namespace that none of them has does not exist."""

    def __init__(self, folder: Path, users: Mapping[str, User]) -> None:
        self.objects, self.users = Objects(folder), dict(users)
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Calls,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None) -> dict[str, str]:
        """Variables of a process that takes this for the Hub: to be set before it imports huggingface_hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            **({} if token is None else {"HF_TOKEN": token}),
        }

    def fail(self, method: str, pattern: str, **how: Any) -> None:
        """See `Fault`."""
        self.faults.append(Fault(method, pattern, **how))

    def before(self, method: str, pattern: str, entered: threading.Event, go: threading.Event) -> None:
        """Such requests set `entered` and wait for `go` before they are answered."""
        self.faults.append(Fault(method, pattern, entered=entered, go=go))

    def count(self, method: str, pattern: str) -> int:
        """How many requests of that method and pattern there have been."""
        return sum(each.method == method and bool(re.search(pattern, each.path)) for each in self.requests)

    def create(self, repo_id: str, private: bool) -> Repo:
        repo = self.repos[repo_id] = Repo(repo_id, private)
        repo.add("main", "initial commit", None, {".gitattributes": self.objects.add(GITATTRIBUTES)})
        return repo

    def content(self, stored: Stored) -> bytes:
        return self.objects.path(stored.oid).read_bytes()

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and re.search(fault.pattern, path) and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None
