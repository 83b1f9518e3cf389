"""A small HTTP server in a thread: the status page, its JSON, and metrics."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsa.encode.service.status import StatusReader
from wsa.encode.service.status_page import error_page, status_page
from wsa.store.common.errors import UsageError, WsaError, redact

# Nothing is run or fetched, whatever a service says, and no other page may frame this one.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = 30  # Of a client that connects and asks for nothing.

    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests."""


@contextlib.contextmanager
def serve(host: str, port: int, apps: Mapping[str, WSGIApplication], flag: str) -> Iterator[str]:
    """Serve until the block ends; yields the server's URL, without a slash at its end.

    Args:
        host: Address to listen on.
        port: Its port; 0 takes any.
        apps: What answers each path.
        flag: The option that asked for it, for messages.

    Raises:
        UsageError: The port is taken, or the address is none of this machine's.
    """

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        app = apps.get(environ.get("PATH_INFO") or "/", _missing)
        return app(environ, start)

    try:

        class Server(_Server):
            address_family = socket.getaddrinfo(host, port)[0][0]

        server = make_server(host, port, answer, Server, _Handler)
    except OSError as error:
        raise UsageError(
            "bad-option",
            f"{flag} {port}: {host}:{port} cannot be served from ({error.strerror or error}). "
            "Give another port, or end what has this one.",
        ) from None
    thread = threading.Thread(target=server.serve_forever, name="http", daemon=True)
    thread.start()
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def status_apps(reader: StatusReader) -> dict[str, WSGIApplication]:
    """What answers `/` and `/status.json`: the status of a store, or why it cannot be read."""

    def page() -> tuple[HTTPStatus, str]:
        try:
            return HTTPStatus.OK, status_page(reader.read())
        except WsaError as error:
            return HTTPStatus.SERVICE_UNAVAILABLE, error_page(
                redact(reader.url), redact(str(error))
            )

    def values() -> tuple[HTTPStatus, str]:
        try:
            return HTTPStatus.OK, json.dumps(reader.read().as_json(), indent=2)
        except WsaError as error:
            found = {"error": {"kind": error.kind, "message": redact(str(error))}}
            return HTTPStatus.SERVICE_UNAVAILABLE, json.dumps(found)

    return {"/": _app("text/html", page), "/status.json": _app("application/json", values)}


def _app(kind: str, make: Callable[[], tuple[HTTPStatus, str]]) -> WSGIApplication:
    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        status, text = make()
        body = text.encode()
        headers = [
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", _POLICY),
            ("X-Content-Type-Options", "nosniff"),
        ]
        start(f"{status.value} {status.phrase}", headers)
        return [body]

    return answer


_missing = _app("text/plain", lambda: (HTTPStatus.NOT_FOUND, "There is no such page.\n"))
