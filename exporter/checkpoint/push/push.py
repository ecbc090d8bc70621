"""Pushing a checkpoint to the Hub: settings, token, repo, and the one commit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors, get_token
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from exporter.checkpoint.push.files import Upload, named, uploads
from exporter.common.errors import BadInput, first_line
from exporter.common.hub import HUB_ERRORS, NOT_KNOWN, Attempts, check_endpoint, library_messages, silent_library
from exporter.common.text import Notify
from exporter.common.version import __version__

DEFAULT_BRANCH = "main"
KEPT = ".gitattributes"
"""The repo's own, made by the Hub."""
HARMLESS = (KEPT, "README.md", "LICENSE")
"""What may be in a repo before there is a model."""


@dataclass(frozen=True)
class PushSettings:
    """Settings of `unskill push`; the names are those of the flags. revision: a branch, or refs/pr/N."""

    out: Path
    repo: str
    public: bool = False
    revision: str | None = None
    create_pr: bool = False
    message: str | None = None
    dry_run: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        """Raises BadInput for settings that no push can have."""
        try:
            validate_repo_id(self.repo)
        except errors.HFValidationError as error:
            raise BadInput(f"{self.repo!r} is not the name of a repo: {' '.join(str(error).split())}") from error
        if "/" not in self.repo:
            raise BadInput(f"{self.repo!r} is not the name of a repo: give USER/NAME or ORGANISATION/NAME")
        if self.create_pr and self.revision is not None:
            raise BadInput("--create-pr: the Hub opens pull requests against main only; leave out --revision")
        if self.create_pr and self.public:
            raise BadInput("--public: a pull request is not merged yet; leave out --create-pr, or push again after it")
        if self.revision is not None and (not self.revision.strip() or re.fullmatch("[0-9a-f]{40}", self.revision)):
            raise BadInput(f"--revision: '{self.revision}' is not the name of a branch")
        if self.message is not None and not self.message.strip():
            raise BadInput("--message: a commit needs a message; leave it out for the usual one")

    @property
    def command(self) -> str:
        """The command that does the same."""
        words = ["unskill", "push", str(self.out), self.repo]
        words += [flag for flag, given in (("--public", self.public), ("--create-pr", self.create_pr)) if given]
        for flag, value in (("--revision", self.revision), ("--message", self.message)):
            words += [] if value is None else [flag, value]
        return shlex.join(words)


def find_token() -> str:
    """The user's token, found as huggingface_hub does: HF_TOKEN, or the file of `hf auth login`.

    Raises BadInput where there is no usable one, or the Hub must not be used at all. No message holds the token, and
    the library logs nothing meanwhile.
    """
    if constants.HF_HUB_OFFLINE:
        raise BadInput("HF_HUB_OFFLINE is set: unset it to push")
    check_endpoint()
    try:
        with silent_library():
            token = get_token()
    except HUB_ERRORS as error:
        raise BadInput(
            f"the token cannot be read ({type(error).__name__}): log in with `hf auth login`, or set HF_TOKEN"
        ) from None
    # Of a CI that exchanges its own identity for a token, and of a login that has expired.
    except (errors.OIDCError, errors.DeviceCodeError) as error:
        raise BadInput(f"there is no token to push with: {first_line(error)}") from None
    if token is None:
        raise BadInput("there is no token to push with: log in with `hf auth login`, or set HF_TOKEN")
    if not re.fullmatch(r"[!-~]+", token):  # the HTTP library's own error would show it
        raise BadInput("the token (HF_TOKEN, or the file of `hf auth login`) has characters that no token has")
    return token


def push(settings: PushSettings, check: Callable[[Path, Notify], None], notify: Notify) -> dict[str, Any]:
    """Push the checkpoint in one commit and return what was done, a JSON object; with dry_run, what would be.

    check: raises BadInput where the folder is not a whole checkpoint.

    Raises BadInput for a folder that is no whole checkpoint, a missing token, or a repo that holds something else;
    RunFailed where the Hub cannot be reached or refuses. Then no commit was made, unless the message says so.
    """
    files = uploads(settings.out)
    token = None if settings.dry_run else find_token()
    check(settings.out, notify)
    files = named(files, settings.out, settings.repo)
    found = {
        "repo": settings.repo,
        "revision": settings.revision or DEFAULT_BRANCH,
        "files": [{"path": each.path, "size": each.size} for each in files],
        "bytes": sum(each.size for each in files),
        "dry_run": settings.dry_run,
    }
    return found if token is None else found | send(settings, files, token, notify)


def send(settings: PushSettings, files: Sequence[Upload], token: str, notify: Notify) -> dict[str, Any]:
    """All that needs the network, in an order in which nothing unfinished is ever public: a private repo, the commit,
    and only then --public."""
    api = HfApi(token=token)
    attempt = Attempts(settings.repo, token, f"go on with: {settings.command}")
    before = "no commit was made, and what was uploaded will not be uploaded again"
    with library_messages(notify, token, settings.quiet):
        head = attempt(before, find_repo, api, settings)
        check_kind(head, settings)
        stale, private = stale_files(head, files), bool(head.private)
        if not (private or settings.public):
            notify(f"{settings.repo} is public, and stays so")
        # Not `upload_folder`: with hf_xet that makes several commits, and splits one that the Hub has rejected.
        commit = attempt(
            before,
            api.create_commit,
            settings.repo,
            [
                *(CommitOperationAdd(each.path, each.source) for each in files),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=settings.message or f"Checkpoint written by unskill {__version__}",
            revision=settings.revision,
            create_pr=settings.create_pr,
            parent_commit=head.sha,  # refused where somebody has committed since `stale` was found
            odd=NOT_KNOWN,
        )
        made = commit.oid != head.sha
        if not made:
            notify(f"{settings.repo} holds all of this already: no new commit")
        if settings.public and private:
            state = f"commit {commit.oid} is there, but still private"
            attempt(state, api.update_repo_settings, settings.repo, private=False)
            private = False
    return {
        "url": f"{api.endpoint}/{settings.repo}",
        "commit": commit.oid,
        "commit_url": commit.commit_url,
        "pull_request": commit.pr_url,
        "changed": made,
        "deleted": stale if made else [],
        "private": private,
    }


def find_repo(api: HfApi, settings: PushSettings) -> ModelInfo:
    """The repo at the revision that is pushed to; a missing repo is made, private, and a missing branch too.

    Raises BadInput where that branch would start from something that is no checkpoint.
    """
    try:
        main = api.model_info(settings.repo)
    except errors.RepositoryNotFoundError:
        api.create_repo(settings.repo, private=True, exist_ok=True)
        main = api.model_info(settings.repo)
    revision = settings.revision
    if revision in (None, DEFAULT_BRANCH):
        return main
    try:
        return api.model_info(settings.repo, revision=revision)
    except errors.RevisionNotFoundError:
        if revision.startswith("refs/"):
            raise
    check_kind(main, settings)
    api.create_branch(settings.repo, branch=revision, exist_ok=True)
    return api.model_info(settings.repo, revision=revision)


def check_kind(head: ModelInfo, settings: PushSettings) -> None:
    """Raise BadInput where the commit would delete what is not ours, or the Hub would leave out some of its files."""
    there = [each.rfilename for each in head.siblings or ()]
    ours = any(re.fullmatch(r"modeling_unskill_\w+\.py", name) for name in there)
    if ignoring := [name for name in there if name.rpartition("/")[2] == ".gitignore"]:
        raise BadInput(
            f"{settings.repo} has {ignoring[0]}, by which the Hub silently leaves files out of a commit: delete it "
            "there first"
        )
    others = [name for name in there if name not in HARMLESS]
    if others and not ours and not settings.create_pr:
        raise BadInput(
            f"{settings.repo} holds something other than a checkpoint of unskill ({others[0]}), which a push would "
            "replace: name another repo, or propose the change with --create-pr"
        )


def stale_files(head: ModelInfo, files: Sequence[Upload]) -> list[str]:
    """Files of the repo that the checkpoint does not have. The same commit deletes them: transformers would prefer an
    earlier push's model.safetensors to the shards of this one."""
    ours = {KEPT, *(each.path for each in files)}
    return sorted(each.rfilename for each in head.siblings or () if each.rfilename not in ours)
