"""A small HTTP proxy on loopback that injects faults.

Requests are numbered from 0. A *plan* gives each request a fault or none:

    503, 403 Denied   answered with this status and error code, not forwarded
    slow              forwarded after a second
    hang              neither forwarded nor answered
    cut               forwarded; half of the body of the reply is sent
    lost              forwarded; the connection is closed without a reply
    dropped           not forwarded; the connection is closed
    stale             answered with the first reply to the same request
    mute              forwarded; the reply lacks the metadata of the object
    overwrite         forwarded without its condition, as if the server ignored it
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

SLOW_S = 1.0


class Request(NamedTuple):
    """What a plan sees of a request."""

    number: int
    method: str
    path: str
    signature: str


Plan = Callable[[Request], str | None]


class Proxy(ThreadingHTTPServer):
    """Forwards requests to `target` (host, port), with the faults of `plan`."""

    daemon_threads = True

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.plan: Plan = lambda request: None
        self.requests: list[tuple[Request, str | None]] = []
        self.first: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}
        self.lock = threading.Lock()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def decide(self, method: str, path: str, signature: str) -> str | None:
        """Number a request and return its fault."""
        with self.lock:
            request = Request(len(self.requests), method, path, signature)
            fault = self.plan(request)
            self.requests.append((request, fault))
        return fault

    def clear(self, plan: Plan = lambda request: None) -> None:
        """Restart at request 0 with a new plan."""
        with self.lock:
            self.plan = plan
            self.requests = []
            self.first = {}

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def proxy(self) -> Proxy:
        """The server."""
        assert isinstance(self.server, Proxy)
        return self.server

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.decide(self.command, self.path, self.headers.get("Authorization", ""))
        if fault == "hang":
            self.proxy.over.wait(30)
        if fault in ("hang", "dropped"):
            self.close_connection = True
            return
        if fault is not None and fault[:3].isdigit():
            code = fault[4:] or "SlowDown"
            return self._answer(int(fault[:3]), [], f"<Error><Code>{code}</Code></Error>".encode())
        if fault == "overwrite":
            del self.headers["If-None-Match"]
        if fault == "slow":
            self.proxy.over.wait(SLOW_S)
        status, headers, data = self._ask(body)
        with self.proxy.lock:
            first = self.proxy.first.setdefault(self.path, (status, headers, data))
        if fault == "stale":
            status, headers, data = first
        if fault == "mute":
            headers = [pair for pair in headers if not pair[0].lower().startswith("x-amz-meta")]
        if fault == "lost":
            self.close_connection = True
            return
        self._answer(status, headers, data, cut=fault == "cut")

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.proxy.target, timeout=30)
        try:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            reply = connection.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            connection.close()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        # A reply to HEAD states the length of the body, but has none.
        length = {k.lower(): v for k, v in headers}.get("content-length", str(len(data)))
        dropped = ("connection", "transfer-encoding", "content-length")
        for name, value in headers:
            if name.lower() not in dropped:
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def proxy(target: tuple[str, int]) -> Iterator[Proxy]:
    """A running proxy."""
    running = Proxy(target)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield running
    finally:
        running.over.set()
        running.shutdown()
        thread.join()
        running.server_close()
