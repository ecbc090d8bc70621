"""What can go wrong between here and the Hub: each as one line, and nothing of a token in any of it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError

from huggingface_hub import constants, errors
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from exporter.errors import Interrupted, RunFailed, first_line

# What huggingface_hub raises: its own errors and those of its HTTP library (whose name has changed twice), ValueError
# and RuntimeError for an upload that fails in a thread or in hf_xet, or for an answer that is not as it should be.
HUB_ERRORS = (errors.HTTPError, OSError, ValueError, RuntimeError)  # type: ignore[attr-defined]


@contextmanager
def one_line(repo: str, token: str, state: str, go_on: str) -> Iterator[None]:
    """Turn what fails inside into a RunFailed, and Ctrl-C into an Interrupted.

    state: what the repo is like then; go_on: what to do. The errors are not chained: where a server repeats what it
    was sent, the token would be in a traceback.
    """
    try:
        yield
    except HUB_ERRORS as error:
        cause = innermost(error)
        state = "whether the commit was made is not known" if is_lost(cause) else state
        raise RunFailed(without(token, f"{explain(cause, repo)}; {state}; {go_on}")) from None
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {go_on}") from None


def innermost(error: BaseException) -> BaseException:
    """The error of the call itself: uploads in threads wrap it into an "Error while uploading"."""
    while not isinstance(error, errors.HfHubHTTPError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def is_lost(error: BaseException) -> bool:
    """Whether the Hub may have made the commit, and only its answer did not come."""
    if not isinstance(error, errors.HTTPError):  # type: ignore[attr-defined]
        return False
    refused = isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500
    return "/commit/" in str(error.request.url) and not refused


def explain(error: BaseException, repo: str) -> str:
    """Why a call to the Hub failed, in words of its user."""
    if isinstance(error, errors.HfHubHTTPError):
        return explain_status(error, repo)
    if isinstance(error, JSONDecodeError):
        return f"{constants.ENDPOINT} answered with something else than JSON, as proxies do and a Hub that is down"
    if isinstance(error, (errors.HTTPError, ConnectionError)):  # type: ignore[attr-defined]
        return f"the connection to {constants.ENDPOINT} failed ({first_line(error)})"
    return f"pushing to {repo} failed ({first_line(error)})"


def explain_status(error: errors.HfHubHTTPError, repo: str) -> str:
    status, headers = error.response.status_code, error.response.headers
    said = (error.server_message or "").strip().splitlines()
    reason = f"{status}: {said[0]}" if said else str(status)
    if status == 401:
        return f"the Hub does not accept the token ({reason}): log in with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return f"the token must not write to {repo} ({reason}): use one with write access to {repo.split('/')[0]}"
    if status == 404:
        return f"{repo}: no such user, organisation or repo, or none that the token can see ({reason})"
    if status in (409, 412):
        return f"{repo} was changed by somebody else meanwhile ({reason})"
    if status == 429:
        wait = headers.get("Retry-After", "")
        return f"the Hub takes no more requests for now ({reason}): wait {f'{wait} seconds' if wait else 'some time'}"
    if status >= 500:
        return f"the Hub has a fault of its own ({reason}): wait some time"
    return f"the Hub refuses to change {repo} ({reason})"


def without(token: str, text: str) -> str:
    return text.replace(token, "<token>")


class Remarks(logging.Handler):
    """The library's messages as remarks. Addresses lose their query, which may be a signature that lets one write."""

    def __init__(self, remark: Callable[[str], None], token: str) -> None:
        super().__init__()
        self.remark, self.token = remark, token

    def emit(self, record: logging.LogRecord) -> None:
        self.remark(without(self.token, re.sub(r"(https?://[^\s?]*)\?[^\s'\"]*", r"\1", self.format(record))))


@contextmanager
def library_messages(remark: Callable[[str], None], token: str, quiet: bool) -> Iterator[None]:
    """While this runs, what huggingface_hub logs and warns of are remarks, and with `quiet` it draws no bars."""
    logger = logging.getLogger("huggingface_hub")
    handlers, bars = logger.handlers, not are_progress_bars_disabled()
    logger.handlers = [Remarks(remark, token)]
    if quiet and bars:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *rest: remark(without(token, f"warning: {message}"))
            yield
    finally:
        logger.handlers = handlers
        if quiet and bars:
            enable_progress_bars()
