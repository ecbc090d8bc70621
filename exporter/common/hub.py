"""Errors of the Hub as one line each, never with any part of a token."""

from __future__ import annotations

import errno
import gc
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import logging as hub_logging  # importing it adds a handler: do so before `logged_by`
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from exporter.common.errors import BadInput, Interrupted, RunFailed, UnskillError, first_line

Result = TypeVar("Result")

# What huggingface_hub raises: its own errors and those of its HTTP library (which has changed twice), ValueError and
# RuntimeError for an upload that fails in a thread or in hf_xet or for a malformed answer, which may also raise those
# of ODD_ANSWER.
ODD_ANSWER = (KeyError, TypeError, AttributeError)
HUB_ERRORS = (errors.HTTPError, OSError, ValueError, RuntimeError, *ODD_ANSWER)  # type: ignore[attr-defined]
NOT_KNOWN = "it is not known whether the commit was made"


def check_endpoint() -> None:
    """Raises BadInput for an HF_ENDPOINT that is not an address, for which each HTTP library raises another error."""
    try:
        parts = urlsplit(constants.ENDPOINT)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise BadInput(f"HF_ENDPOINT is set to {constants.ENDPOINT!r}, which is not an address: unset or correct it")


@dataclass(frozen=True)
class Attempts:
    """Calls to the Hub whose failures are one line each. go_on: how to resume after any of them."""

    repo: str
    token: str
    go_on: str

    def __call__(
        self, state: str, function: Callable[..., Result], *arguments: Any, odd: str | None = None, **named: Any
    ) -> Result:
        """What the function returns. Raises RunFailed if it fails, and Interrupted on Ctrl-C.

        state: of the repo after a failure, for the message; odd: the same after an answer that the library cannot
        read. Errors are not raised from the library's: if a server repeats what it was sent, that traceback shows the
        token.
        """
        try:
            return function(*arguments, **named)
        except HUB_ERRORS as error:
            failure: UnskillError = RunFailed(self.explain(innermost(error), state, odd))
        except KeyboardInterrupt:
            failure = Interrupted(f"interrupted; {self.go_on}")
        # The library closes the bar of a failed upload only when it is garbage-collected: do so before the error.
        gc.collect()
        raise failure

    def explain(self, error: BaseException, state: str, odd: str | None) -> str:
        if is_lost(error):
            state = NOT_KNOWN
        elif isinstance(error, (*ODD_ANSWER, JSONDecodeError)) and odd is not None:
            state = odd
        return without(self.token, f"{explain(error, self.repo)}; {state}; {self.go_on}")


def innermost(error: BaseException) -> BaseException:
    """The error of the call itself: uploads in threads wrap it in an "Error while uploading"."""
    while not isinstance(error, errors.HTTPError) and error.__cause__ is not None:  # type: ignore[attr-defined]
        error = error.__cause__
    return error


def is_lost(error: BaseException) -> bool:
    """Whether the Hub may have made the commit, with only its answer lost."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= 500 and "/commit/" in str(error.response.url)
    try:
        return "/commit/" in str(error.request.url)  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):  # only the HTTP library's own errors have the request
        return False


def explain(error: BaseException, repo: str) -> str:
    """Why a call to the Hub failed, in the user's terms."""
    if isinstance(error, errors.HfHubHTTPError):
        return explain_status(error, repo)
    if isinstance(error, JSONDecodeError):
        return f"{constants.ENDPOINT} did not answer with JSON: a proxy, or a Hub that is down"
    if isinstance(error, (errors.HTTPError, ConnectionError)):  # type: ignore[attr-defined]
        return f"the connection to {constants.ENDPOINT} failed ({first_line(error)})"
    if isinstance(error, ODD_ANSWER):
        return f"{constants.ENDPOINT} answered in an unexpected form ({type(error).__name__})"
    return f"pushing to {repo} failed ({first_line(error)})"


def explain_status(error: errors.HfHubHTTPError, repo: str) -> str:
    status = error.response.status_code
    said = (error.server_message or "").strip().splitlines()
    reason = f"{status}: {said[0]}" if said else str(status)
    if status == 401:
        return f"the Hub does not accept the token ({reason}): log in with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return f"the token may not write to {repo} ({reason}): use one with write access to {repo.split('/')[0]}"
    if status == 404:
        return f"{repo}: no such user, organisation or repo, or none that the token can see ({reason})"
    if status in (409, 412):
        return f"{repo} was changed by somebody else in the meantime ({reason})"
    if status == 429:
        return f"the Hub limits the rate of requests ({reason}): wait {asked_to_wait(error.response.headers)}"
    if status >= 500:
        return f"the Hub has an internal error ({reason}): try again later"
    return f"the Hub refuses to change {repo} ({reason})"


def asked_to_wait(headers: Mapping[str, str]) -> str:
    """How long to wait, from either header that says so: `Retry-After: 55`, `RateLimit: "api";r=0;t=55`."""
    limit = re.search(r";\s*t=(\d+)", headers.get("RateLimit", ""))
    seconds = headers.get("Retry-After", "") or (limit[1] if limit else "")
    return f"{seconds} seconds" if seconds.isdigit() else "some time"


def without(token: str, text: str) -> str:
    return text.replace(token, "<token>")


class Messages(logging.Handler):
    """Pass on the library's log. Addresses lose their query, which may be a signature that grants write access."""

    def __init__(self, notify: Callable[[str], None], token: str) -> None:
        super().__init__()
        self.notify, self.token = notify, token

    def emit(self, record: logging.LogRecord) -> None:
        self.notify(without(self.token, re.sub(r"(https?://[^\s?]*)\?[^\s'\"]*", r"\1", self.format(record))))


@contextmanager
def logged_by(handler: logging.Handler) -> Iterator[None]:
    """Let `handler` alone handle the library's log, and restore warning filters afterwards."""
    logger = hub_logging.get_logger()
    handlers, logger.handlers = logger.handlers, [handler]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        logger.handlers = handlers


@contextmanager
def silent_library() -> Iterator[None]:
    """Silence the library's log and warnings: they quote a token file that cannot be read."""
    with logged_by(logging.NullHandler()):  # with no handler at all, Python's own would print
        warnings.simplefilter("ignore")
        yield


@contextmanager
def library_messages(notify: Callable[[str], None], token: str, quiet: bool) -> Iterator[None]:
    """Pass the library's log and warnings to `notify`; with `quiet`, hide its progress bars."""
    hidden = quiet and not are_progress_bars_disabled()
    if hidden:
        disable_progress_bars()
    try:
        with logged_by(Messages(notify, token)):
            warnings.showwarning = lambda message, *rest: notify(without(token, f"warning: {message}"))
            yield
    finally:
        if hidden:
            enable_progress_bars()


@contextmanager
def download_errors(where: str, kind: str, repo: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises during a download into one line that says what to do.

    where: what was requested, such as "MODEL org/name"; kind: "model" or "dataset"; repo: its id; revision: the
    requested one, if any.

    Raises:
        BadInput: A bad HF_ENDPOINT; there is no such repo or revision, it is gated, or the Hub cannot be reached.
        RunFailed: The disk is full, or the cache cannot be written.
    """
    check_endpoint()
    no_file = f"no such {'folder' if kind == 'model' else 'file'}"
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        with silent_library():
            yield
    except errors.HFValidationError as error:
        raise BadInput(f"{where}: {no_file}, and not the id of a {kind}") from error
    except errors.GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{'' if kind == 'model' else 'datasets/'}{repo}"
        raise BadInput(f"{where}: the {kind} is gated: accept its terms on {page}, then {log_in}") from error
    except errors.RevisionNotFoundError as error:
        raise BadInput(f"{where}: the {kind} has no revision '{revision}'") from error
    except errors.RepositoryNotFoundError as error:
        raise BadInput(f"{where}: {no_file}, and no such {kind} on the Hub; if it is private, {log_in}") from error
    # HTTPError of the HTTP library in use; ValueError of an answer that is not JSON; RuntimeError of hf_xet.
    except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:  # type: ignore[attr-defined]
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFailed(
                f"{where}: disk full while downloading to {constants.HF_HUB_CACHE}: make room there, or set "
                "HF_HOME to a folder on another disk"
            ) from error
        if isinstance(error, OSError) and error.filename is not None:
            raise RunFailed(
                f"{where}: cannot be downloaded to {constants.HF_HUB_CACHE} ({error.strerror}); set HF_HOME to "
                "another folder"
            ) from error
        if constants.HF_HUB_OFFLINE:
            at = f" at revision '{revision}'" if revision else ""
            raise BadInput(
                f"{where}: {no_file}, and no such {kind} in the cache{at}: unset HF_HUB_OFFLINE to download it"
            ) from error
        # Errors that are not about the connection may quote a token file that cannot be read.
        known = (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError)  # type: ignore[attr-defined]
        reason = first_line(error) if isinstance(error, known) else type(error).__name__
        raise BadInput(
            f"{where}: {no_file}, and the Hub cannot be reached for a {kind} of this name ({reason}); "
            "HF_HUB_OFFLINE=1 uses a cached one"
        ) from error


def download(model: str, what: str, patterns: Sequence[str], revision: str | None = None) -> tuple[Path, str]:
    """Download files of a Hub model; returns their folder in the cache, and the commit.

    model: its id; what: the argument's name, for errors; patterns: of file names; revision: branch, tag or commit,
    None for the main branch. Raises as `download_errors`.
    """
    with download_errors(f"{what} {model}", "model", model, revision):
        folder = Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=list(patterns)))
    return folder, folder.name
