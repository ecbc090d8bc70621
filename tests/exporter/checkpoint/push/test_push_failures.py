"""What the Hub and the way to it can do to a push: one line that says what to do, nothing half there, and the same
command goes on."""

from __future__ import annotations

import hashlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from exporter.common.errors import BadInput
from exporter.common.hub import check_endpoint, download
from tests.exporter.checkpoint.push.pushing import DRIVER, READ_TOKEN, TOKEN, Done, Site, clean, edit
from tests.hub_server import HubServer

CREATE, PREUPLOAD, STORAGE, COMMIT, SETTINGS = (
    ("POST", "/api/repos/create"),
    ("POST", "/preupload/"),
    ("PUT", "/storage/"),
    ("POST", "/commit/"),
    ("PUT", "/settings$"),
)
INFO, YAML, BATCH = ("GET", "/api/models/"), ("POST", "/api/validate-yaml"), ("POST", "/objects/batch")
HTML = {"body": lambda _: b"<html><body>Service Unavailable</body></html>", "headers": {"Content-Type": "text/html"}}
AGAIN = "no commit was made, and what was uploaded will not be uploaded again; go on with: unskill push "

FAULTS: dict[str, tuple[tuple[str, str], dict[str, Any], str]] = {
    "401 at create": (CREATE, {"status": 401}, "the Hub does not accept the token (401"),
    "401 at info": (INFO, {"status": 401}, "the Hub does not accept the token (401"),
    "401 at commit": (COMMIT, {"status": 401}, "the Hub does not accept the token (401"),
    "403 at create": (CREATE, {"status": 403}, "the token may not write to me/model (403"),
    "403 at preupload": (PREUPLOAD, {"status": 403}, "the token may not write to me/model (403"),
    "404 at create": (CREATE, {"status": 404}, "me/model: no such user, organisation or repo"),
    "409 at commit": (COMMIT, {"status": 409}, "me/model was changed by somebody else in the meantime (409"),
    "412 at commit": (COMMIT, {"status": 412}, "me/model was changed by somebody else in the meantime (412"),
    "413 at commit": (COMMIT, {"status": 413}, "the Hub refuses to change me/model (413"),
    "429 at create": (CREATE, {"status": 429, "headers": {"Retry-After": "7"}}, "(429: made to fail): wait 7 seconds"),
    "429 at info": (INFO, {"status": 429, "headers": {"RateLimit": '"api";r=0;t=55'}}, "wait 55 seconds"),
    "429 at storage": (STORAGE, {"status": 429, "headers": {"Retry-After": "7"}}, "wait 7 seconds"),
    "500 at storage": (STORAGE, {"status": 500}, "the Hub has an internal error (500"),
    "503 at preupload": (PREUPLOAD, {"status": 503, **HTML}, "the Hub has an internal error (503"),
    "503 at batch": (BATCH, {"status": 503}, "the Hub has an internal error (503"),
    "cut at create": (CREATE, {"cut_after": 0}, "failed (Server disconnected"),
    "cut in an upload": (STORAGE, {"cut_after": 1000}, "the connection to http://127.0.0.1"),
}
USUAL = ("401 at create", "503 at batch", "cut in an upload")


def is_clear(done: Done, site: Site) -> None:
    """One line, exit 1, no traceback, and no address with a signature."""
    assert done.code == 1 and done.out == ""
    assert done.last.startswith("unskill: error: ") and "Traceback" not in done.err
    assert f"unskill push {site.folder / 'checkpoint'} me/model" in done.last
    assert "X-Amz-Signature" not in done.err


def stored(hub: HubServer) -> list[str]:
    """The objects that were uploaded whole, by path."""
    return [each.path for each in hub.requests if each.path.startswith("/storage/") and each.status == 200]


def is_pushed(site: Site) -> None:
    """Everything is there, in one commit, and no object was uploaded twice."""
    head = site.hub.repos["me/model"].history()[0]
    assert len(site.hub.repos["me/model"].history()) == 2
    assert len(stored(site.hub)) == len(set(stored(site.hub))) == sum(each.lfs for each in head.files.values()) >= 3


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=() if each in USUAL else pytest.mark.slow) for each in FAULTS]
)
def test_fault(name: str, out: Path, site: Site) -> None:
    (method, pattern), how, said = FAULTS[name]
    if pattern == INFO[1]:
        site.hub.create("me/model", private=True)
    site.hub.fail(method, pattern, **how)
    done = site.push(out, "me/model", "--public")
    is_clear(done, site)
    assert said in done.last and AGAIN in done.last
    repo = site.hub.repos.get("me/model")
    assert repo is None or (repo.private and len(repo.history()) == 1), "half a checkpoint that anybody sees"

    site.hub.faults.clear()
    assert site.push(out, "me/model", "--public").code == 0
    is_pushed(site)
    assert not site.hub.repos["me/model"].private


ODD = {"status": 200, "body": lambda _: b'{"success": true}'}
UNKNOWN = "it is not known whether the commit was made; go on with: unskill push "


@pytest.mark.parametrize(
    ("place", "how", "said"),
    [
        (COMMIT, ODD, UNKNOWN),
        (BATCH, ODD, AGAIN),
        (COMMIT, {"status": 200, **HTML}, f"did not answer with JSON.*{UNKNOWN}"),
        # Before the commit, but of the same call of the library.
        (YAML, {"status": 200, "body": lambda _: b"[]"}, f"in an unexpected form.*{UNKNOWN}"),
        (YAML, {"status": 503, **HTML}, f"did not answer with JSON.*{UNKNOWN}"),
    ],
)
@pytest.mark.slow
def test_answers_of_another_form(
    place: tuple[str, str], how: dict[str, Any], said: str, out: Path, site: Site
) -> None:
    site.hub.fail(*place, **how)
    done = site.push(out, "me/model")
    is_clear(done, site)
    assert re.search(said, done.last)
    site.hub.faults.clear()
    assert site.push(out, "me/model").code == 0
    is_pushed(site)


def test_one_object_fails_and_the_others_are_not_uploaded_again(out: Path, site: Site) -> None:
    (largest,) = sorted(out.glob("*.safetensors"), key=lambda path: path.stat().st_size)[-1:]
    oid = hashlib.sha256(largest.read_bytes()).hexdigest()
    site.hub.fail("PUT", f"/storage/{oid}", cut_after=largest.stat().st_size // 2)
    done = site.push(out, "me/model")
    is_clear(done, site)
    there = stored(site.hub)
    assert there and site.hub.count("PUT", oid) == 6  # huggingface_hub tries five times more

    site.hub.faults.clear()
    assert site.push(out, "me/model").code == 0
    is_pushed(site)
    assert set(stored(site.hub)) - set(there) == {f"/storage/{oid}"}


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:port", "http://127.0.0.1:99999", "127.0.0.1", "http://[::1", ""]
)
def test_endpoints_that_are_no_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    with pytest.raises(BadInput, match=r"HF_ENDPOINT is set to .*, which is not an address"):
        check_endpoint()
    with pytest.raises(BadInput, match="HF_ENDPOINT"):
        download("me/model", "MODEL", ["*.json"])


def test_short_faults_are_borne(out: Path, site: Site) -> None:
    """By the library's own trying again, after the time that the Hub asks for."""
    site.hub.fail(*BATCH, status=429, times=1, headers={"Retry-After": "70"})
    site.hub.fail(*STORAGE, status=503, times=1)
    site.hub.fail(*STORAGE, cut_after=1000, times=1)
    done = site.push(out, "me/model")
    assert done.code == 0, done.err
    # 71 s, and 1 s for each object that fails once, or 1 and 2 s for one that gets both faults.
    assert "Waiting 71.0s before retry" in done.err and re.search(r"waited 7[34] s\n$", done.err), done.err
    is_pushed(site)


def test_quiet_is_quiet_about_faults_that_are_borne(out: Path, site: Site) -> None:
    site.hub.fail(*STORAGE, status=503, times=1)
    done = site.push(out, "me/model", "--quiet")
    assert done.code == 0 and re.fullmatch(r"waited \S+ s\n", done.err)


def test_public_fails_after_the_commit(out: Path, site: Site) -> None:
    site.hub.fail(*SETTINGS, status=500)
    done = site.push(out, "me/model", "--public")
    is_clear(done, site)
    repo = site.hub.repos["me/model"]
    assert f"commit {repo.history()[0].sha} is there, but still private" in done.last and repo.private
    site.hub.faults.clear()
    done = site.push(out, "me/model", "--public")
    assert done.code == 0 and not repo.private
    is_pushed(site)


@pytest.mark.parametrize("how", [{"cut_after": 100}, {"lost": True}, {"status": 500}])
@pytest.mark.slow
def test_answer_to_the_commit_is_lost(how: dict[str, Any], out: Path, site: Site) -> None:
    """Whether before or after it was made: nobody can tell from here."""
    site.hub.fail(*COMMIT, **how)
    done = site.push(out, "me/model")
    is_clear(done, site)
    assert UNKNOWN in done.last
    site.hub.faults.clear()
    assert site.push(out, "me/model").code == 0
    is_pushed(site)


def test_gitignore_by_which_files_would_stay_behind(out: Path, site: Site) -> None:
    assert site.push(out, "me/model").code == 0
    repo = site.hub.repos["me/model"]
    head = repo.history()[0]
    repo.add("main", "by hand", head, {**head.files, ".gitignore": site.hub.objects.add(b"*.safetensors")})
    done = site.push(out, "me/model")
    assert done.code == 2 and len(repo.history()) == 3
    assert "me/model has .gitignore, by which the Hub silently leaves files out of a commit" in done.last


def test_somebody_commits_in_between(out: Path, site: Site) -> None:
    """What is removed from the repo is what was seen there, or nothing is."""
    site.push(out, "me/model")
    repo = site.hub.repos["me/model"]
    edit(out, "README.md", "\nOne more line.\n")
    entered, go = threading.Event(), threading.Event()
    site.hub.before("POST", "/preupload/", entered, go)
    results: list[Done] = []
    pushing = threading.Thread(target=lambda: results.append(site.push(out, "me/model", token=TOKEN)))
    pushing.start()
    assert entered.wait(60)
    head = repo.history()[0]
    repo.add("main", "of somebody", head, {**head.files, "NOTES.md": head.files["README.md"]})
    go.set()
    pushing.join()
    (done,) = results
    is_clear(done, site)
    assert "changed by somebody else in the meantime (412" in done.last and repo.history()[0].title == "of somebody"


def test_nobody_listens(out: Path, site: Site) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    done = site.push(out, "me/model", variables={"HF_ENDPOINT": url})
    is_clear(done, site)
    assert f"the connection to {url} failed ([Errno 111] Connection refused)" in done.last


def test_with_xet(out: Path, site: Site) -> None:
    """With hf_xet at work, as it is where nothing turns it off: this server does not know it."""
    pytest.importorskip("hf_xet")
    done = site.push(out, "me/model", variables={"HF_HUB_DISABLE_XET": "0"})
    is_clear(done, site)
    assert site.hub.count("GET", "/xet-write-token/") > 0 and len(site.hub.repos["me/model"].history()) == 1


@pytest.mark.slow
def test_tokens_that_must_not(out: Path, site: Site) -> None:
    assert "the Hub does not accept the token (401" in site.push(out, "me/model", token="hf_MARKERofNobody").last
    assert "the token may not write to me/model (403" in site.push(out, "me/model", token=READ_TOKEN).last
    assert "may not write to somebody/model (403" in site.push(out, "somebody/model").last
    assert "nobody/model: no such user, organisation or repo" in site.push(out, "nobody/model").last
    assert site.hub.repos == {}


@pytest.mark.parametrize("fault", [CREATE, STORAGE, COMMIT])
def test_server_that_repeats_the_token(fault: tuple[str, str], out: Path, site: Site) -> None:
    """`Site.run` looks for it in all that is printed; nothing is hidden by nothing being shown."""
    how = {"status": 400, "body": lambda sent: f'{{"error": "you sent {sent}"}}'.encode()}
    site.hub.fail(*fault, **how)
    done = site.push(out, "me/model", variables={"HF_DEBUG": "1"})
    is_clear(done, site)
    assert fault == STORAGE or "you sent Bearer <token>" in done.last


def test_ctrl_c(out: Path, site: Site) -> None:
    go, seen = threading.Event(), threading.Event()
    site.hub.before(*STORAGE, seen, go)
    environment = {**clean({}), **site.hub.environment(site.home, TOKEN), "PATH": "/usr/bin:/bin"}
    environment["PYTHONPATH"] = str(DRIVER.parents[4])
    process = subprocess.Popen(
        [sys.executable, str(DRIVER), "push", str(out), "me/model"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=site.folder,
        # Where tests run in the background SIGINT is ignored, in their children too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert seen.wait(60)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    go.set()
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors and printed == "", errors
    assert f"interrupted; go on with: unskill push {out} me/model" in errors
    assert len(site.hub.repos["me/model"].history()) == 1
    site.hub.faults.clear()
    assert site.push(out, "me/model").code == 0
    is_pushed(site)
