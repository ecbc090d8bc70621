"""What `unskill push` refuses at once: wrong usage, tokens that cannot be read, folders that `verify` rejects."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.exporter.checkpoint.push.pushing import TOKEN, Site


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model"], "give USER/NAME"),
        (["me/you/model"], "is not the name of a repo"),
        (["me/mo del"], "is not the name of a repo"),
        (["me/-model"], "is not the name of a repo"),
        (["me/model.git"], "is not the name of a repo"),
        (["me/model", "--revision", "a" * 40], "--revision"),
        (["me/model", "--revision", ""], "--revision"),
        (["me/model", "--message", " "], "--message"),
        (["me/model", "--create-pr", "--revision", "trial"], "--create-pr"),
        (["me/model", "--create-pr", "--public"], "--public"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, out: Path, site: Site) -> None:
    done = site.push(out, *arguments)
    assert done.code == 2 and said in done.last and done.last.startswith("unskill: error: ")
    assert site.hub.requests == []


@pytest.mark.parametrize(
    ("token", "variables", "said"),
    [
        (None, {}, "there is no token to push with: log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_MARKER with spaces", {}, "has characters that no token has"),
        ("hf_MARKER\x01", {}, "has characters that no token has"),
        (TOKEN, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        (TOKEN, {"HF_ENDPOINT": "127.0.0.1"}, "HF_ENDPOINT is set to '127.0.0.1', which is not an address"),
    ],
)
@pytest.mark.slow
def test_no_token_to_push_with(token: str | None, variables: dict[str, str], said: str, out: Path, site: Site) -> None:
    done = site.push(out, "me/model", token=token, variables=variables)
    assert (done.code, site.hub.requests) == (2, []) and said in done.last
    # Before an export begins, too: a model that is not there would be the next thing to be wrong.
    arguments = ["no-such-model", site.folder / "new", "--forget", "none.jsonl", "--push", "me/model"]
    done = site.unskill("export", *arguments, token=token, variables=variables)
    assert (done.code, site.hub.requests) == (2, []) and said in done.last


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("token", b"hf_MARKER\xff"),
        ("token/folder", b""),
        ("stored_tokens", b"hf_MARKERinside\n"),
        ("stored_tokens/folder", b""),
    ],
)
@pytest.mark.slow
def test_token_files_of_another_form(name: str, content: bytes, out: Path, site: Site) -> None:
    """Nothing of them is shown, as `Site.run` sees to; that of the stored ones alone is no reason not to push."""
    path = site.home / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    if not (site.home / "token").exists():
        (site.home / "token").write_text(TOKEN)
    looked = site.unskill("inspect", "me/other", token=None)
    done = site.push(out, "me/model", token=None)
    for each in (looked, done):
        assert "Traceback" not in each.err and "Error parsing" not in each.err
    if name.startswith("stored_tokens"):
        assert done.code == 0, done.err
    else:
        assert (done.code, site.hub.requests) == (2, [])
        assert re.search(r"the token cannot be read \(\w+Error\): log in with `hf auth login`", done.last)


def test_identity_of_a_ci_that_the_hub_does_not_take(out: Path, site: Site) -> None:
    trade = {"HF_OIDC_RESOURCE": "me/model", "HF_OIDC_ID_TOKEN": "hf_MARKERofaCI"}
    done = site.push(out, "me/model", token=None, variables=trade)
    assert done.code == 2 and "the token cannot be read (" in done.last and "Traceback" not in done.err
    assert {each.path for each in site.hub.requests} <= {"/oauth/token"} and not site.hub.repos


@pytest.mark.slow
def test_export_with_a_bad_name_does_not_begin(site: Site) -> None:
    arguments = ["no-such-model", site.folder / "new", "--forget", "none.jsonl"]
    assert "is not the name of a repo" in site.unskill("export", *arguments, "--push", "a/b/c").last
    assert "--public" in site.unskill("export", *arguments, "--public").last


@pytest.mark.slow
def test_folders_that_are_no_checkpoint(out: Path, site: Site) -> None:
    plain, graph = site.folder / "plain", site.folder / "graph"
    shutil.copytree(out, graph)
    (graph / "onnx").mkdir()
    (graph / "onnx" / "model.onnx").write_bytes(b"graph")
    plain.mkdir()
    assert "there is no such folder" in site.push(site.folder / "none", "me/model").last
    assert "has no config.json" in site.push(plain, "me/model").last
    (plain / "config.json").write_text("{}")
    assert "is not one that unskill wrote" in site.push(plain, "me/model").last
    assert "is an ONNX folder" in site.push(graph, "me/model").last
    assert site.hub.requests == []


@pytest.mark.parametrize("change", ["altered", "added", "removed"])
@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_folder_that_verify_rejects(change: str, flags: tuple[str, ...], out: Path, site: Site) -> None:
    name = spoil(out, change)
    done = site.push(out, "me/model", *flags)
    assert done.code == 2 and "unskill verify rejects it" in done.last and name in done.last
    assert site.hub.requests == []


@pytest.mark.slow
def test_folder_that_the_real_verify_rejects(out: Path, site: Site) -> None:
    name = spoil(out, "altered")
    done = site.push(out, "me/model", real=True)
    assert done.code == 2 and "unskill verify rejects it" in done.last and name in done.last
    assert site.hub.requests == []


@pytest.mark.slow
def test_an_onnx_folder_beside_it_is_not_looked_at(out: Path, site: Site) -> None:
    """It is not pushed, and may be of an older export."""
    out.with_name("checkpoint-onnx").mkdir()
    assert site.push(out, "me/model", "--dry-run", real=True).code == 0


def spoil(out: Path, change: str) -> str:
    """The name of the file that is no longer as the export wrote it."""
    if change == "added":
        (out / "notes.txt").write_text("of mine")
        return "notes.txt"
    name = "generation_config.json"
    if change == "altered":
        (out / name).write_text((out / name).read_text() + " ")
    else:
        (out / name).unlink()
    return name
