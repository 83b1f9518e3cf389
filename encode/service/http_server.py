"""A small HTTP server in a thread, for the status page, its JSON, and metrics."""

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

# Whatever a heartbeat contains, the page runs and fetches nothing, and no page may frame it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = 30  # Seconds until a client that sends nothing is dropped.

    def handle(self) -> None:
        """Handle a request, and ignore clients that disconnect or send nothing."""
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""


@contextlib.contextmanager
def serve(host: str, port: int, apps: Mapping[str, WSGIApplication], flag: str) -> Iterator[str]:
    """Serve until the block ends, and yield the server's URL without a trailing slash.

    Args:
        port: Port to listen on; 0 for any free one.
        apps: WSGI application for each path.
        flag: Option that sets the port, for messages.

    Raises:
        UsageError: If the port is taken, or the address is not one of this machine.
    """

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        app = apps.get(environ.get("PATH_INFO") or "/", _missing)
        return app(environ, start)

    try:

        class Server(_Server):
            address_family = socket.getaddrinfo(host, port)[0][0]

        server = make_server(host, port, answer, Server, _Handler)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{flag} {port}: cannot listen on {host}:{port} ({reason}). Choose a free port and an "
            "address of this machine."
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
    """Return the applications for `/` and `/status.json`, which show the status or an error."""

    def page() -> tuple[HTTPStatus, str]:
        try:
            return HTTPStatus.OK, status_page(reader.read())
        except WsaError as error:
            return HTTPStatus.SERVICE_UNAVAILABLE, error_page(reader.url, str(error))

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
