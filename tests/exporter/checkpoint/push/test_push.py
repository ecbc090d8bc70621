"""What `unskill push` takes, what it makes of the repo, and what it says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from exporter.checkpoint.card.text import named_card
from exporter.checkpoint.push.files import uploads
from exporter.common.errors import BadInput
from tests.exporter.checkpoint.push.pushing import OTHER_TOKEN, TOKEN, Site, edit, names


def commits(site: Site, repo: str = "me/model") -> int:
    """Commits of main beside that of the repo's making."""
    return len(site.hub.repos[repo].history()) - 1


def sizes(out: Path, repo: str) -> dict[str, int]:
    """Of all that goes up, by name; in the card the name is longer or shorter than what stood for it."""
    card = len(named_card((out / "README.md").read_text(), repo).encode())
    return {name: (out / name).stat().st_size for name in sorted(names(out))} | {"README.md": card}


def test_what_is_printed(out: Path, site: Site) -> None:
    done = site.push(out, "me/model")
    commit = site.hub.repos["me/model"].history()[0].sha
    assert done.code == 0
    assert f"{site.hub.url}/me/model (private)" in done.out
    assert f'from_pretrained("me/model", revision="{commit}", trust_remote_code=True)' in done.out
    compile(done.out.split("\n\n", 1)[1], "snippet", "exec")


def test_json_and_quiet(out: Path, site: Site) -> None:
    done = site.push(out, "me/model", "--json", "--quiet")
    commit = site.hub.repos["me/model"].history()[0].sha
    assert done.json == {
        "repo": "me/model",
        "revision": "main",
        "files": [{"path": name, "size": size} for name, size in sizes(out, "me/model").items()],
        "bytes": sum(sizes(out, "me/model").values()),
        "dry_run": False,
        "url": f"{site.hub.url}/me/model",
        "commit": commit,
        "commit_url": f"{site.hub.url}/me/model/commit/{commit}",
        "pull_request": None,
        "changed": True,
        "deleted": [],
        "private": True,
    }
    assert [line for line in done.err.splitlines() if not line.startswith("waited")] == []


def test_dry_run_without_token_and_network(out: Path, site: Site) -> None:
    done = site.push(out, "me/model", "--dry-run", token=None, variables={"HF_HUB_OFFLINE": "1"})
    assert done.code == 0
    listed = [line.split(maxsplit=1) for line in done.out.splitlines()[:-1]]
    assert {name: int(size.replace(",", "")) for size, name in listed} == sizes(out, "me/model")
    assert f"Would push {len(names(out))} files" in done.out
    found = site.push(out, "me/model", "--dry-run", "--json", token=None).json
    assert [each["path"] for each in found["files"]] == sorted(names(out)) and found["dry_run"]
    assert site.hub.requests == []


def test_what_is_left_behind_does_not_go_up(out: Path, site: Site) -> None:
    wanted = names(out)
    for name in (".cache/huggingface/x.json", ".gitattributes", "reproduce/.DS_Store"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("left behind")
    assert {each["path"] for each in site.push(out, "me/model", "--json").json["files"]} == wanted
    assert set(site.hub.repos["me/model"].history()[0].files) == wanted | {".gitattributes"}


def test_names_that_are_left_out(out: Path) -> None:
    """Whatever verify says of them."""
    wanted = [each.path for each in uploads(out)]
    for name in ("config.json.tmp", "model.safetensors.incomplete", "__pycache__/x.pyc", ".git/HEAD", "README.md~"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("left behind")
    assert [each.path for each in uploads(out)] == wanted == sorted(wanted)


def test_recorded_files_go_up_whatever_their_names(out: Path) -> None:
    """Of a base that brings them: the pushed checkpoint has to pass verify too."""
    wanted = ["reproduce/base/._config.json", "reproduce/base/README.md~"]
    for name in wanted:
        (out / name).write_text("the base's")
        edit(out, name, "")
    (out / "reproduce" / "base" / "notes.txt~").write_text("left behind")
    assert {each.path for each in uploads(out)} == names(out) - {"reproduce/base/notes.txt~"} >= set(wanted)


def test_links_are_not_followed_out_of_the_folder(out: Path, tmp_path: Path) -> None:
    (out / "more.md").symlink_to("README.md")
    assert "more.md" in [each.path for each in uploads(out)]
    (tmp_path / "secret").write_text("of another folder")
    (out / "notes.md").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput, match=r"OUT checkpoint: notes\.md is a link to a file outside of the folder"):
        uploads(out)


def test_a_snapshot_in_the_cache_is_pushed_although_it_is_made_of_links(out: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    blobs.mkdir(parents=True)
    for number, path in enumerate(each for each in sorted(out.rglob("*")) if each.is_file()):
        shutil.copy(path, blobs / str(number))
        link = snapshot / path.relative_to(out)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    assert [each.path for each in uploads(snapshot)] == [each.path for each in uploads(out)]


def test_public_only_after_the_commit(out: Path, site: Site) -> None:
    assert not site.push(out, "me/model", "--public", "--json").json["private"]
    calls = [each for each in site.hub.requests if each.status == 200]
    (created,) = [each for each in calls if each.path == "/api/repos/create"]
    assert created.body.get("visibility") == "private" or created.body.get("private") is True
    made, opened = (
        next(number for number, each in enumerate(calls) if word in each.path) for word in ("/commit/", "/settings")
    )
    assert made < opened and not site.hub.repos["me/model"].private


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.slow
def test_repo_that_exists_keeps_its_visibility(private: bool, out: Path, site: Site) -> None:
    repo = site.hub.create("me/model", private=private)
    done = site.push(out, "me/model")
    assert done.code == 0 and repo.private is private and commits(site) == 1
    assert ("me/model is public, and stays so" in done.err) is not private
    assert site.push(out, "me/model", "--public").code == 0 and not repo.private


def test_nothing_new_is_no_new_commit(out: Path, site: Site) -> None:
    first = site.push(out, "me/model", "--json").json
    again = site.push(out, "me/model", "--json").json
    assert commits(site) == 1 and (again["commit"], again["changed"]) == (first["commit"], False)
    assert "Already up to date" in site.push(out, "me/model").out


def test_only_what_changed_is_uploaded(out: Path, site: Site) -> None:
    site.push(out, "me/model")
    before = site.hub.count("PUT", "/storage/")
    edit(out, "README.md", "\nOne more line.\n")
    assert site.push(out, "me/model").code == 0
    assert site.hub.count("PUT", "/storage/") == before
    newest = [each.body for each in site.hub.requests if "/commit/" in each.path][-1]
    assert [line["value"]["path"] for line in newest[1:]] == ["README.md", "reproduce/hashes.json"]


def test_files_of_an_earlier_push_are_removed(out: Path, site: Site) -> None:
    """Shards beside a model.safetensors of last time would not be loaded: that one has precedence."""
    site.push(out, "me/model")
    repo = site.hub.repos["me/model"]
    head = repo.history()[0]
    repo.add("main", "by hand", head, {**head.files, "model.safetensors": head.files["README.md"]})
    done = site.push(out, "me/model", "--json").json
    assert done["deleted"] == ["model.safetensors"] and commits(site) == 3
    assert repo.history()[0].files == head.files


def test_repo_of_something_else_is_left_alone(out: Path, site: Site) -> None:
    repo = site.hub.create("me/model", private=True)
    head = repo.history()[0]
    repo.add("main", "by hand", head, {**head.files, "model.safetensors": site.hub.objects.add(b"something else")})
    done = site.push(out, "me/model")
    assert done.code == 2 and commits(site) == 1
    assert "me/model holds something other than a checkpoint of unskill (model.safetensors)" in done.last
    # As a pull request it can be looked at first.
    assert site.push(out, "me/model", "--create-pr").code == 0 and commits(site) == 1


def test_no_branch_is_made_of_something_else(out: Path, site: Site) -> None:
    repo = site.hub.create("me/model", private=True)
    head = repo.history()[0]
    repo.add("main", "by hand", head, {**head.files, "model.safetensors": site.hub.objects.add(b"something else")})
    refs = dict(repo.refs)
    done = site.push(out, "me/model", "--revision", "trial")
    assert done.code == 2 and "me/model holds something other" in done.last and repo.refs == refs


def test_branch(out: Path, site: Site) -> None:
    done = site.push(out, "me/model", "--revision", "trial/1", "--json").json
    repo = site.hub.repos["me/model"]
    assert commits(site) == 0 and repo.history("trial/1")[0].sha == done["commit"]
    edit(out, "README.md", "\nOne more line.\n")
    assert site.push(out, "me/model", "--revision", "trial/1").code == 0
    assert len(repo.history("trial/1")) == 3


def test_pull_request_and_more_of_it(out: Path, site: Site) -> None:
    done = site.push(out, "me/model", "--create-pr", "--message", "A model without sums", "--json").json
    repo = site.hub.repos["me/model"]
    assert done["pull_request"] == f"{site.hub.url}/me/model/discussions/1" and commits(site) == 0
    assert repo.history("refs/pr/1")[0].sha == done["commit"]
    assert repo.history("refs/pr/1")[0].title == "A model without sums"
    edit(out, "README.md", "\nOne more line.\n")
    assert site.push(out, "me/model", "--revision", "refs/pr/1").code == 0
    assert (repo.pulls, len(repo.history("refs/pr/1"))) == (1, 3)


def test_organisation_and_token_of_the_login(out: Path, site: Site) -> None:
    site.home.mkdir()
    (site.home / "token").write_text(TOKEN + "\n")
    assert site.push(out, "club/model", token=None).code == 0 and commits(site, "club/model") == 1


def test_marker_token_is_nowhere(out: Path, site: Site) -> None:
    """Nor in what the library logs when asked for all of it; what is printed `Site.run` looks at."""
    chatty = {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"}
    done = site.push(out, "me/model", variables=chatty)
    assert done.code == 0 and "authorization: <TOKEN>" in done.err
    assert "X-Amz-Signature" not in done.err  # which lets one write to the storage
    assert site.push(out, "somebody/model", variables=chatty).code == 1
    for path in site.folder.rglob("*"):
        assert not path.is_file() or b"hf_MARKER" not in path.read_bytes(), path


def test_somebody_elses_private_repo(out: Path, site: Site) -> None:
    site.hub.create("me/model", private=True)
    done = site.push(out, "me/model", token=OTHER_TOKEN)
    assert done.code == 1 and "may not write to me/model" in done.last and commits(site) == 0
