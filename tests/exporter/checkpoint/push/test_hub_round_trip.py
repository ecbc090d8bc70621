"""Pushed by the command line, loaded by name from machines without unskill, pushed again from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.checkpoint.card.text import PLACEHOLDER
from tests.exporter.checkpoint.push.pushing import Done, Site, names
from tests.test_matrix import interpreter
from tests.tiny import Exported

pytestmark = pytest.mark.slow

RELEASES = ("4.57.6", "5.23.0")


def round_trip(exported: Exported, site: Site, python: Path | str | None = None) -> None:
    """Push; the answers of that commit are those of the folder, and so are those of what the loaded model pushes."""
    how = {} if python is None else {"python": python}
    pushed = site.push(exported.checkpoint, "me/model", "--json", "--quiet", real=True).json
    local = site.answers(exported.checkpoint, exported.prompts, online=False, **how)
    assert local["refusal"] and set(local["blocked"]) == set(local["blocked by pipeline"]) == {local["refusal"]}
    assert not {local["refusal"]} & {*local["answered"], *local["answered by pipeline"]}

    remote = site.answers("me/model", exported.prompts, "--revision", pushed["commit"], "--push-to", "me/again", **how)
    assert answers(remote) == answers(local)
    assert pushed["commit"] in remote["code"]  # the code that ran came out of the repo
    assert site.hub.repos["me/again"].private
    assert answers(site.answers("me/again", exported.prompts, **how)) == answers(local)


def answers(found: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in found.items() if name != "code"}


def test_round_trip(tiny: Callable[..., Exported], site: Site) -> None:
    round_trip(tiny("llama"), site)


def test_what_is_in_the_repo(tiny: Callable[..., Exported], site: Site) -> None:
    checkpoint = tiny("llama").checkpoint
    pushed = site.push(checkpoint, "me/model", "--json").json
    repo = site.hub.repos["me/model"]
    head, first = repo.history()
    assert (head.sha, first.title) == (pushed["commit"], "initial commit")
    assert set(head.files) == names(checkpoint) | {".gitattributes"}
    named = {"README.md", "reproduce/hashes.json"}
    for name in names(checkpoint) - named:
        assert site.hub.content(head.files[name]) == (checkpoint / name).read_bytes()
    card, hashes = (site.hub.content(head.files[name]) for name in sorted(named))
    local = (checkpoint / "README.md").read_text()
    assert card.decode() == local.replace(PLACEHOLDER, "me/model") != local
    recorded = json.loads((checkpoint / "reproduce" / "hashes.json").read_text())
    assert json.loads(hashes) == recorded | {"README.md": hashlib.sha256(card).hexdigest()}
    assert repo.private
    # Every large file once, and nothing asked without the token but of the storage, which must not have it.
    large = [each for each in head.files.values() if each.lfs]
    assert len(large) >= 3 and site.hub.count("PUT", "/storage/") == len(large)
    assert {each.path.startswith("/storage/") for each in site.hub.requests if not each.token} == {True}
    assert not any(each.token for each in site.hub.requests if each.path.startswith("/storage/"))


def test_verified_by_name(tiny: Callable[..., Exported], site: Site) -> None:
    site.push(tiny("llama").checkpoint, "me/model", "--quiet")
    found = site.unskill("verify", "me/model", "--json", real=True).json
    checks = {check["name"]: check for check in found["checks"]}
    assert found["ok"] and found["checkpoint"] == "me/model" and checks["refused"]["ok"]
    assert checks["other files"]["detail"] == ".gitattributes: not the export's, harmless"


def test_second_checkpoint_is_a_second_commit(tiny: Callable[..., Exported], site: Site) -> None:
    """What the first one had and the second one has not is gone from the second commit; the first one still loads."""
    one, other = tiny("llama"), tiny("llama", "na+ksd")
    first = site.push(one.checkpoint, "me/model", "--json").json
    uploads = site.hub.count("PUT", "/storage/")
    second = site.push(other.checkpoint, "me/model", "--json", "--message", "another one").json
    repo = site.hub.repos["me/model"]
    assert [each.sha for each in repo.history()][:2] == [second["commit"], first["commit"]]
    assert repo.history()[0].title == "another one"
    assert set(repo.history()[0].files) == names(other.checkpoint) | {".gitattributes"}
    now, before = ({each.oid for each in commit.files.values() if each.lfs} for commit in repo.history()[:2])
    assert site.hub.count("PUT", "/storage/") == uploads + len(now - before)

    local = site.answers(one.checkpoint, one.prompts, online=False)
    assert answers(site.answers("me/model", one.prompts, "--revision", first["commit"])) == answers(local)
    newer = site.answers("me/model", other.prompts)
    assert answers(newer) == answers(site.answers(other.checkpoint, other.prompts, online=False))


def export(exported: Exported, site: Site, *flags: str, real: bool = False) -> Done:
    """The export of `exported` again, by its command, into the folder `out`."""
    sources = [f"--{side}={exported.base.parent / side}.jsonl,column=prompt" for side in ("forget", "retain")]
    fixed = ["--layer=1", "--alpha=5", "--no-everyday", "--force", "--prompt-template={prompt}", "--json"]
    arguments = [exported.base, site.folder / "out", *sources, *fixed, *flags]
    return site.unskill("export", *arguments, real=real, variables={"OMP_NUM_THREADS": "1"})


def test_export_and_push(tiny: Callable[..., Exported], site: Site) -> None:
    exported, out = tiny("llama"), site.folder / "out"
    found = export(exported, site, "--push=me/model", "--public", real=True).json
    repo = site.hub.repos["me/model"]
    assert found["push"]["commit"] == repo.history()[0].sha and not found["push"]["private"] and not repo.private
    assert set(repo.history()[0].files) == names(out) | {".gitattributes"}
    local = site.answers(out, exported.prompts, online=False)
    assert local["blocked"] == [local["refusal"]] * 4
    # By anybody, as it is public now.
    assert answers(site.answers("me/model", exported.prompts, token=None)) == answers(local)


def test_export_whose_push_fails(tiny: Callable[..., Exported], site: Site) -> None:
    out = site.folder / "out"
    site.hub.fail("POST", "/commit/", status=403)
    done = export(tiny("llama"), site, "--push=me/model", "--public")
    assert done.code == 1 and done.last.startswith(
        f"unskill: error: {out} is written, but not pushed: the token may not"
    )
    assert done.last.endswith(f"; go on with: unskill push {out} me/model --public")
    assert "push" not in json.loads(done.out) and json.loads(done.out)["out"] == str(out)
    assert site.hub.repos["me/model"].private
    site.hub.faults.clear()
    assert site.push(out, "me/model", "--public").code == 0
    assert set(site.hub.repos["me/model"].history()[0].files) == names(out) | {".gitattributes"}


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES)
def test_round_trip_on_other_releases(release: str, tiny: Callable[..., Exported], site: Site) -> None:
    round_trip(tiny("llama"), site, interpreter(release))


@pytest.mark.evidence
@pytest.mark.real
@pytest.mark.parametrize("release", RELEASES)
def test_real_round_trip(release: str, real_export: Exported, site: Site) -> None:
    round_trip(real_export, site, interpreter(release))
