"""Downloads that fail: each of the Hub's errors is one line that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from exporter.common.errors import BadInput, RunFailed, UnskillError
from exporter.common.hub import download
from exporter.prompts.sources import Source, load_prompts


def hub_error(name: str) -> Exception:
    """An error as the library raises it, without the response that differs by its release."""
    kind = getattr(errors, name)
    error: Exception = kind.__new__(kind)
    return error


def model(revision: str | None) -> None:
    download("org/model", "MODEL", ["*.json"], revision)


def dataset(revision: str | None) -> None:
    load_prompts(Source("org/model", revision=revision), "--forget")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """What the Hub raises, whatever it is asked for."""

    def set_(error: Exception) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return set_


@pytest.mark.parametrize(("ask", "what"), [(model, "model"), (dataset, "dataset")])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (hub_error("GatedRepoError"), r"the WHAT is gated: accept its terms on \S+/org/model, .*`hf auth login`"),
        (hub_error("RepositoryNotFoundError"), "no such WHAT on the Hub; if it is private, .*`hf auth login`"),
        (hub_error("RevisionNotFoundError"), "the WHAT has no revision 'v9'"),
        (errors.HFValidationError("bad"), "not the id of a WHAT"),
        (ConnectionError("no route"), r"the Hub cannot be reached for a WHAT of this name \(no route\)"),
        (errors.LocalEntryNotFoundError("not cached"), "the Hub cannot be reached for a WHAT of this name"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_to_do(
    ask: Callable[[str | None], None],
    what: str,
    error: Exception,
    expected: str,
    failing: Callable[[Exception], None],
) -> None:
    failing(error)
    with pytest.raises(BadInput, match=expected.replace("WHAT", what)) as raised:
        ask("v9")
    assert str(raised.value).startswith({"model": "MODEL", "dataset": "--forget"}[what] + " org/model: ")


@pytest.mark.parametrize(("ask", "what"), [(model, "model"), (dataset, "dataset")])
def test_offline(
    ask: Callable[[str | None], None],
    what: str,
    failing: Callable[[Exception], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing(errors.LocalEntryNotFoundError("not cached"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match=f"no such {what} in the cache at revision 'v9': unset HF_HUB_OFFLINE"):
        ask("v9")
    with pytest.raises(BadInput, match=f"no such {what} in the cache: unset HF_HUB_OFFLINE"):
        ask(None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "MODEL org/model: disk full while .* HF_HOME"),
        (PermissionError(errno.EACCES, "Permission denied", "/cache/x"), r"cannot be .* \(Permission denied\)"),
    ],
)
def test_faults_of_the_disk_are_no_bad_input(
    error: Exception, expected: str, failing: Callable[[Exception], None]
) -> None:
    failing(error)
    with pytest.raises(RunFailed, match=expected):
        model(None)


def test_a_bug_keeps_its_traceback(failing: Callable[[Exception], None]) -> None:
    for error in (TypeError("unexpected keyword"), AttributeError("no such"), KeyError("x")):
        failing(error)
        with pytest.raises(type(error)) as raised:
            model(None)
        assert not isinstance(raised.value, UnskillError)
