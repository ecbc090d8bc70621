"""The calls that the Hub of the tests answers, and who may make them."""

from __future__ import annotations

import base64
import re
import shutil
from typing import Any

from tests.hub_handler import CHUNK, Handler
from tests.hub_requests import Answer, User
from tests.hub_store import Commit, Repo, Stored, is_lfs, repo_info, tree

REPO = r"([\w.-]+/[\w.-]+)"


class Calls(Handler):
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

    routes = (
        ("POST", "/api/repos/create", create),
        ("POST", "/api/validate-yaml", validate),
        ("PUT", f"/api/models/{REPO}/settings", settings),
        ("POST", f"/api/models/{REPO}/branch/([^/]+)", branch),
        ("POST", f"/api/models/{REPO}/preupload/([^/]+)", preupload),
        ("POST", f"/api/models/{REPO}/commit/([^/]+)", commit),
        ("GET", f"/api/models/{REPO}/tree/([^/]+)(/.*)?", tree),
        ("GET", f"/api/models/{REPO}(?:/revision/([^/]+))?", info),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", batch),
        ("PUT", "/storage/([0-9a-f]{64})", store),
        ("GET|HEAD", f"/{REPO}/resolve/([^/]+)/(.+)", resolve),
    )
