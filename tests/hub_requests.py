"""Who asks a Hub of the tests, what was asked, and how an answer may fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class User:
    """Who a token belongs to. write: whether the token may write; orgs: namespaces of others it may write to."""

    name: str
    write: bool = True
    orgs: tuple[str, ...] = ()

    def may_write(self, repo: str) -> bool:
        return self.write and self.owns(repo)

    def owns(self, repo: str) -> bool:
        return repo.split("/")[0] in (self.name, *self.orgs)


@dataclass(frozen=True)
class Request:
    """status: 0 where the connection was cut; token: whether the request brought one; body: where it was JSON."""

    method: str
    path: str
    status: int
    token: bool
    body: Any = None


@dataclass
class Fault:
    """What happens to requests of a method whose path matches `pattern`, `times` times (None: for ever).

    An answer of this status with these headers, and what `body` makes of the Authorization header; or (cut_after) a
    connection that ends after so many bytes of the request's body; or (lost) one that ends in place of the answer,
    after all is done; or (entered, go) a delay.
    """

    method: str
    pattern: str
    times: int | None = None
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Callable[[str], bytes] = lambda _: b'{"error": "made to fail"}'
    cut_after: int | None = None
    lost: bool = False
    entered: threading.Event | None = None
    go: threading.Event | None = None


class Answer(Exception):
    """Raised where a request ends otherwise than by what it asked for."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **more}
