"""What the Hub of the tests holds: repos, their commits as snapshots, and file contents on disk by their hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# As in the .gitattributes that the Hub puts into a new repo, and its limit for all other files.
LFS_SUFFIXES = (".safetensors", ".bin", ".onnx")
REGULAR_LIMIT = 10 * 2**20
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


def git_blob_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > REGULAR_LIMIT)


@dataclass(frozen=True)
class Stored:
    """A file of a commit. oid: sha256 of a large file (lfs), else the git hash of its content."""

    oid: str
    size: int
    lfs: bool


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    files: Mapping[str, Stored]


@dataclass
class Repo:
    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pulls: int = 0

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision, revision))

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits of a branch, newest first; the last one is that of the repo's making."""
        found, commit = [], self.find(revision)
        while commit is not None:
            found.append(commit)
            commit = None if commit.parent is None else self.commits[commit.parent]
        return found

    def add(self, revision: str, title: str, parent: Commit | None, files: Mapping[str, Stored]) -> Commit:
        named = {path: each.oid for path, each in files.items()}
        content = json.dumps([self.id, title, parent and parent.sha, named, len(self.commits)])
        commit = Commit(hashlib.sha1(content.encode()).hexdigest(), parent and parent.sha, title, dict(files))
        self.commits[commit.sha] = commit
        self.refs[revision] = commit.sha
        return commit


class Objects:
    """Contents of files by oid, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, oid: str) -> Path:
        return self.folder / oid

    def has(self, oid: str) -> bool:
        return self.path(oid).is_file()

    def add(self, content: bytes) -> Stored:
        """A small file's content."""
        oid = git_blob_sha1(content)
        self.path(oid).write_bytes(content)
        return Stored(oid, len(content), lfs=False)

    def receive(self, oid: str, chunks: Callable[[], bytes]) -> bool:
        """A large file's content, as `chunks` gives it until b""; whether it was the one of this sha256."""
        target, digest = self.path(f"{oid}.part"), hashlib.sha256()
        with target.open("wb") as file:
            while chunk := chunks():
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != oid:
            target.unlink()
            return False
        target.replace(self.path(oid))
        return True


def repo_info(repo: Repo, commit: Commit) -> dict[str, Any]:
    return {
        "_id": repo.id,
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.split("/")[0],
        "sha": commit.sha,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [{"rfilename": path} for path in commit.files],
    }


def tree(commit: Commit, folder: str, recursive: bool) -> list[dict[str, Any]] | None:
    """Files and folders under `folder` ("" for all); None where there is no such folder."""
    prefix = f"{folder}/" if folder else ""
    inside = {path: each for path, each in commit.files.items() if path.startswith(prefix)}
    if folder and not inside:
        return None
    entries: dict[str, dict[str, Any]] = {}
    for path, each in inside.items():
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            name = prefix + "/".join(parts[:depth])
            oid = hashlib.sha1(name.encode()).hexdigest()
            entries[name] = {"type": "directory", "path": name, "oid": oid, "size": 0}
        if recursive or len(parts) == 1:
            entries[path] = tree_entry(path, each)
    return list(entries.values())


def tree_entry(path: str, stored: Stored) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": stored.oid, "size": stored.size}
    if stored.lfs:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{stored.oid}\nsize {stored.size}\n"
        entry["oid"] = git_blob_sha1(pointer.encode())
        entry["lfs"] = {"oid": stored.oid, "size": stored.size, "pointerSize": len(pointer)}
    return entry
