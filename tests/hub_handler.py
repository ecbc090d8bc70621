"""How the Hub of the tests is spoken to: requests told apart, answered, written down, and made to fail."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_requests import Answer, Fault, Request

if TYPE_CHECKING:
    from tests.hub_server import HubServer

CHUNK = 2**20
Route = tuple[str, str, Callable[..., None]]
"""Methods, the pattern of a path, and a method of the handler that takes its groups."""


class Handler(BaseHTTPRequestHandler):
    """The way in and out; what is asked for is in `routes`."""

    hub: HubServer
    routes: Sequence[Route] = ()
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.dispatch()

    do_HEAD = do_POST = do_PUT = do_GET

    def dispatch(self) -> None:
        self.left = int(self.headers.get("Content-Length") or 0)
        self.body: Any = None
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        fault = self.hub.fault(self.command, url.path)
        self.lost = fault is not None and fault.lost
        if fault is not None and self.breaks_off(fault):
            return
        try:
            for method, pattern, function in self.routes:
                if self.command in method.split("|") and (found := re.fullmatch(pattern, url.path)):
                    function(self, *(unquote(part or "") for part in found.groups()))
                    return
            raise Answer(404, f"no such page: {url.path}")
        except Answer as answer:
            headers = {"X-Error-Message": answer.body["error"]}
            headers |= {"X-Error-Code": answer.code} if answer.code else {}
            self.answer(answer.body, answer.status, headers)

    def breaks_off(self, fault: Fault) -> bool:
        """Whether the request ends here."""
        if fault.entered is not None and fault.go is not None:
            fault.entered.set()
            fault.go.wait()
        if fault.cut_after is not None:
            left = fault.cut_after
            while left > 0 and (chunk := self.read(min(left, CHUNK))):
                left -= len(chunk)
            self.cut()
        elif fault.status:
            self.send(fault.status, fault.body(self.headers.get("Authorization", "")), fault.headers)
        return fault.cut_after is not None or bool(fault.status)

    def cut(self) -> None:
        self.note(0)
        self.close_connection = True
        # Shut down, not only closed: the handler's own files still hold the socket.
        self.connection.shutdown(socket.SHUT_RDWR)

    def read(self, size: int = CHUNK) -> bytes:
        chunk = self.rfile.read(min(size, self.left))
        self.left -= len(chunk)
        return chunk

    def lines(self) -> list[Any]:
        raw = b"".join(iter(self.read, b""))
        self.body = [json.loads(line) for line in raw.splitlines() if line.strip()]
        return self.body

    def json(self) -> dict[str, Any]:
        raw = b"".join(iter(self.read, b""))
        self.body = json.loads(raw)
        return self.body

    def answer(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        while self.read():  # what was not asked for: the next request begins after it
            pass
        if self.lost:
            self.cut()
            return
        self.start(status, {"Content-Length": str(len(content)), **headers})
        if self.command != "HEAD":
            self.wfile.write(content)

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        self.note(status)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def note(self, status: int) -> None:
        has_token = "Authorization" in self.headers
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, urlsplit(self.path).path, status, has_token, self.body))
