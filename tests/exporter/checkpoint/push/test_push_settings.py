"""What is said of a push and what may be a name; without a Hub."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.checkpoint.push.push import PushSettings
from exporter.cli.commands.export import push_exported
from exporter.cli.commands.push import show_push
from exporter.common.errors import BadInput, Interrupted, RunFailed, UnskillError
from exporter.verification.whole import check_whole


def test_one_line_of_what_verify_says(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"name": "code", "ok": False, "detail": "\x1b[2Jx.py is altered:\n-a\n+b"}
    monkeypatch.setattr("exporter.verification.whole.verify", lambda *settings: {"ok": False, "checks": [failed]})
    with pytest.raises(BadInput, match=r"rejects it: code: \\x1b\[2Jx\.py is altered:$"):
        check_whole(out, print)


def test_names_that_a_terminal_would_obey(capsys: pytest.CaptureFixture) -> None:
    done = {"files": [{"path": "x\x1b[2J", "size": 1}], "bytes": 1, "repo": "me/model", "revision": "a\x9bb"}
    show_push({**done, "dry_run": True})
    sent = {"url": "http://\x1b", "private": True, "pull_request": "\x1b", "changed": True, "deleted": ["\x1b"]}
    show_push({**done, **sent, "dry_run": False, "commit": "\x1b"})
    show_push({**done, **sent, "dry_run": False, "commit": "\x1b", "pull_request": None})
    assert not re.search("[\x1b\x9b]", capsys.readouterr().out)


def test_command_that_goes_on() -> None:
    settings = PushSettings(Path("a folder"), "me/model", public=True, revision="trial", message="my model")
    wanted = "unskill push 'a folder' me/model --public --revision trial --message 'my model'"
    assert settings.command == wanted


@given(st.text("ab1-_./ é\n", max_size=12) | st.text(max_size=100))
def test_names_of_repos(name: str) -> None:
    """Either it can be a path on the Hub as it is, or it is refused in one line."""
    try:
        settings = PushSettings(Path("out"), name)
    except BadInput as error:
        assert "is not the name of a repo" in str(error) and (str(error).splitlines() == [str(error)])
    else:
        assert re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", settings.repo, re.ASCII)


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (BadInput("no"), RunFailed, "out is written, but not pushed: no"),
        (RunFailed("no"), RunFailed, "out is written, but not pushed: no"),
        (Interrupted("interrupted; go on"), Interrupted, "out is written, but the push was interrupted; go on"),
        (KeyboardInterrupt(), Interrupted, "out is written, but .* go on with: unskill push out me/model"),
    ],
)
def test_push_after_an_export_fails(
    error: BaseException, raised: type[UnskillError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("exporter.checkpoint.push.push.push", fail)
    with pytest.raises(UnskillError, match=said) as caught:
        push_exported(PushSettings(Path("out"), "me/model"), print)
    assert caught.type is raised
