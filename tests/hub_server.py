"""A Hub on loopback, as far as huggingface_hub 0.36 to 2.4 need one to push and load models with Xet turned off.

It holds repos with their commits, checks tokens, writes down every request, and can be told to fail:

    with HubServer(folder, {"hf_...": User("me")}) as hub:
        hub.fail("PUT", "/storage/", status=503, times=2)
        subprocess.run(..., env={**os.environ, **hub.environment(home, "hf_...")})
        assert hub.repos["me/model"].private and hub.count("PUT", "/storage/") == 5
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_requests import Answer, Fault, Request, User
from tests.hub_store import GITATTRIBUTES, Commit, Objects, Repo, Stored, is_lfs, repo_info, tree

CHUNK = 2**20
REPO = r"([\w.-]+/[\w.-]+)"


class HubServer:
    """See the module. `users` by token; a namespace that none of them has does not exist."""

    def __init__(self, folder: Path, users: Mapping[str, User]) -> None:
        self.objects, self.users = Objects(folder), dict(users)
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
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


class Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.dispatch()

    do_HEAD = do_POST = do_PUT = do_GET

    def dispatch(self) -> None:
        self.left = int(self.headers.get("Content-Length") or 0)
        self.body: Any = None
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        fault = self.hub.fault(self.command, url.path)
        self.lost = fault is not None and fault.lost
        if fault is not None and self.breaks_off(fault):
            return
        try:
            for method, pattern, function in ROUTES:
                if self.command in method.split("|") and (found := re.fullmatch(pattern, url.path)):
                    function(self, *(unquote(part or "") for part in found.groups()))
                    return
            raise Answer(404, f"no such page: {url.path}")
        except Answer as answer:
            headers = {"X-Error-Message": answer.body["error"]}
            headers |= {"X-Error-Code": answer.code} if answer.code else {}
            self.answer(answer.body, answer.status, headers)

    def breaks_off(self, fault: Fault) -> bool:
        """Whether the request ends here."""
        if fault.entered is not None and fault.go is not None:
            fault.entered.set()
            fault.go.wait()
        if fault.cut_after is not None:
            left = fault.cut_after
            while left > 0 and (chunk := self.read(min(left, CHUNK))):
                left -= len(chunk)
            self.cut()
        elif fault.status:
            self.send(fault.status, fault.body(self.headers.get("Authorization", "")), fault.headers)
        return fault.cut_after is not None or bool(fault.status)

    def cut(self) -> None:
        self.note(0)
        self.close_connection = True
        # Shut down, not only closed: the handler's own files still hold the socket.
        self.connection.shutdown(socket.SHUT_RDWR)

    # ------------------------------------------------------------------ bodies

    def read(self, size: int = CHUNK) -> bytes:
        chunk = self.rfile.read(min(size, self.left))
        self.left -= len(chunk)
        return chunk

    def lines(self) -> list[Any]:
        raw = b"".join(iter(self.read, b""))
        self.body = [json.loads(line) for line in raw.splitlines() if line.strip()]
        return self.body

    def json(self) -> dict[str, Any]:
        raw = b"".join(iter(self.read, b""))
        self.body = json.loads(raw)
        return self.body

    def answer(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        while self.read():  # what was not asked for: the next request begins after it
            pass
        if self.lost:
            self.cut()
            return
        self.start(status, {"Content-Length": str(len(content)), **headers})
        if self.command != "HEAD":
            self.wfile.write(content)

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        self.note(status)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def note(self, status: int) -> None:
        has_token = "Authorization" in self.headers
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, urlsplit(self.path).path, status, has_token, self.body))

    # ------------------------------------------------------------------ who may what

    def user(self) -> User | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        user = self.hub.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise Answer(401, "Invalid credentials in Authorization header")
        return user

    def repo(self, repo_id: str, write: bool = False) -> Repo:
        """The Hub does not tell apart what is not there and what one must not see."""
        user, repo = self.user(), self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not (user and user.owns(repo_id))):
            raise Answer(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and not (user and user.may_write(repo_id)):
            raise Answer(403 if user else 401, f"You don't have the rights to write to {repo_id}")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # ------------------------------------------------------------------ calls

    def create(self) -> None:
        asked, user = self.json(), self.user()
        if user is None:
            raise Answer(401, "Invalid username or password.")
        namespace = asked.get("organization") or user.name
        repo_id = f"{namespace}/{asked['name']}"
        if not any(each.owns(repo_id) for each in self.hub.users.values()):
            raise Answer(404, f"there is no user or organization {namespace}")
        if not user.may_write(repo_id):
            raise Answer(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        found = {"url": f"{self.hub.url}/{repo_id}", "id": repo_id, "name": repo_id}
        with self.hub.lock:
            if repo_id in self.hub.repos:
                raise Answer(409, "You already created this model repo", **found)
            self.hub.create(repo_id, asked.get("private", asked.get("visibility") == "private"))
        self.answer(found)

    def settings(self, repo_id: str) -> None:
        asked, repo = self.json(), self.repo(repo_id, write=True)
        repo.private = asked.get("private", asked.get("visibility") == "private")
        self.answer({"private": repo.private})

    def branch(self, repo_id: str, name: str) -> None:
        asked, repo = self.json(), self.repo(repo_id, write=True)
        if name in repo.refs:
            raise Answer(409, f"Reference already exists: {name}")
        if name.startswith("refs/") or len(name) == 40:
            raise Answer(400, f"Invalid reference for a branch: {name}")
        repo.refs[name] = self.commit_of(repo, asked.get("startingPoint", "main")).sha
        self.answer({})

    def preupload(self, repo_id: str, revision: str) -> None:
        asked, repo = self.json(), self.repo(repo_id, write=True)
        files = self.commit_of(repo, revision).files
        found = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if is_lfs(each["path"], each["size"]) else "regular",
                "shouldIgnore": False,
                **({"oid": files[each["path"]].oid} if each["path"] in files else {}),
            }
            for each in asked["files"]
        ]
        self.answer({"files": found})

    def batch(self, repo_id: str) -> None:
        asked = self.json()
        self.repo(repo_id, write=True)
        objects = []
        for each in asked["objects"]:
            # A signed address, as of a storage that knows no tokens.
            upload = {"href": f"{self.hub.url}/storage/{each['oid']}?X-Amz-Signature=signed"}
            objects.append(each if self.hub.objects.has(each["oid"]) else {**each, "actions": {"upload": upload}})
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if not self.hub.objects.receive(oid, self.read):
            raise Answer(400, "the content is not of this sha256")
        self.send(200, b"", {})

    def commit(self, repo_id: str, revision: str) -> None:
        lines, repo = self.lines(), self.repo(repo_id, write=True)
        header = lines[0]["value"]
        with self.hub.lock:
            parent = self.commit_of(repo, revision)
            if header.get("parentCommit", parent.sha) != parent.sha:
                raise Answer(412, "A commit has happened since. Please refresh and try again.")
            files = dict(parent.files)
            for line in lines[1:]:
                self.apply(line["key"], line["value"], files)
            found: dict[str, Any] = {}
            if "create_pr" in self.query:
                repo.pulls += 1
                revision = f"refs/pr/{repo.pulls}"
                found["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{repo.pulls}"
            made = repo.add(revision, header["summary"], parent, files)
        self.answer({**found, "commitOid": made.sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{made.sha}"})

    def apply(self, key: str, value: dict[str, Any], files: dict[str, Stored]) -> None:
        path = value["path"]
        if key == "file":
            content = base64.b64decode(value["content"])
            if is_lfs(path, len(content)):
                raise Answer(400, f"{path} must go to the large file storage")
            files[path] = self.hub.objects.add(content)
        elif key == "lfsFile":
            if not self.hub.objects.has(value["oid"]):
                raise Answer(400, f"{path} points to what was never uploaded")
            files[path] = Stored(value["oid"], self.hub.objects.path(value["oid"]).stat().st_size, lfs=True)
        elif key == "deletedFile" and path in files:
            del files[path]
        else:
            raise Answer(400, f"cannot do {key} with {path}")

    def info(self, repo_id: str, revision: str) -> None:
        repo = self.repo(repo_id)
        self.answer(repo_info(repo, self.commit_of(repo, revision or "main")))

    def tree(self, repo_id: str, revision: str, folder: str) -> None:
        commit = self.commit_of(self.repo(repo_id), revision)
        found = tree(commit, folder.strip("/"), self.query.get("recursive", [""])[0].lower() in ("true", "1"))
        if found is None:
            raise Answer(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        self.answer(found)

    def validate(self) -> None:
        asked = self.json()
        # Nothing more than what tells a card from none: its rules are the Hub's.
        if not asked["content"].startswith("---\n"):
            self.answer({"errors": [{"message": "no metadata"}], "warnings": []}, 400)
        else:
            self.answer({"errors": [], "warnings": []})

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        commit = self.commit_of(self.repo(repo_id), revision)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        stored = commit.files.get(path)
        if stored is None:
            self.answer({"error": "Entry not found"}, 404, {**headers, "X-Error-Code": "EntryNotFound"})
            return
        headers["ETag"] = f'"{stored.oid}"'
        first, last, status = 0, stored.size - 1, 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last, status = int(asked[1]), int(asked[2] or last), 206
            if first > last or last >= stored.size:
                self.send(416, b"", {"Content-Range": f"bytes */{stored.size}"})
                return
            headers["Content-Range"] = f"bytes {first}-{last}/{stored.size}"
        self.start(status, {**headers, "Content-Length": str(last - first + 1)})
        if self.command == "HEAD":
            return
        with self.hub.objects.path(stored.oid).open("rb") as file:
            file.seek(first)
            if status == 200:
                shutil.copyfileobj(file, self.wfile, CHUNK)
            else:
                left = last - first + 1
                while chunk := file.read(min(CHUNK, left)):
                    left -= self.wfile.write(chunk)


ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("PUT", f"/api/models/{REPO}/settings", Handler.settings),
    ("POST", f"/api/models/{REPO}/branch/([^/]+)", Handler.branch),
    ("POST", f"/api/models/{REPO}/preupload/([^/]+)", Handler.preupload),
    ("POST", f"/api/models/{REPO}/commit/([^/]+)", Handler.commit),
    ("GET", f"/api/models/{REPO}/tree/([^/]+)(/.*)?", Handler.tree),
    ("GET", f"/api/models/{REPO}(?:/revision/([^/]+))?", Handler.info),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/storage/([0-9a-f]{64})", Handler.store),
    ("GET|HEAD", f"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
]
