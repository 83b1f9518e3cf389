"""An S3 server on loopback, a proxy in front of it that injects faults, and buckets."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from obstore.store import S3Store

from wsa.store.backends.bucket import RemoteBackend
from wsa.store.objects.root import open_store

USER, SECRET = "AKIAWSATESTING", "a-secret/that+nobody-may-see"
_numbers = itertools.count()


class Serial:
    """A WSGI application that serves one PUT or DELETE at a time.

    The test server first checks whether a name is taken and then takes it; a real bucket does both
    in one step.
    """

    def __init__(self, application: Any) -> None:
        self.application = application
        self.lock = threading.Lock()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] not in ("PUT", "DELETE"):
            return self.application(environ, start_response)
        with self.lock:
            return list(self.application(environ, start_response))


@pytest.fixture(scope="session")
def server() -> Iterator[tuple[str, int]]:
    """Host and port of an S3 server that keeps everything in memory."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # Real servers keep connections too.

    application = Serial(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield "127.0.0.1", server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def faults() -> ModuleType:
    """`proxy.py`, loaded by path, because `tests` is not a package."""
    path = Path(__file__).with_name("proxy.py")
    spec = importlib.util.spec_from_file_location("wsa_test_proxy", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def wire(server: tuple[str, int], faults: ModuleType) -> Iterator[Any]:
    """A `proxy.Proxy` in front of the server."""
    with faults.proxy(server) as proxy:
        yield proxy


@pytest.fixture
def environment(
    server: tuple[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> pytest.MonkeyPatch:
    """What a user sets before the first command."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", USER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server))
    return monkeypatch


@pytest.fixture
def faulty(environment: pytest.MonkeyPatch, wire: Any) -> Any:
    """The proxy, through which all requests go."""
    wire.clear()
    environment.setenv("AWS_ENDPOINT_URL", wire.url)
    environment.setenv("WSA_RETRY_S", "20")
    yield wire
    wire.clear()


@pytest.fixture
def s3(environment: pytest.MonkeyPatch, server: tuple[str, int]) -> Any:
    """A client apart from wsa, to inspect and create buckets."""
    import boto3

    return boto3.client("s3", endpoint_url="http://{}:{}".format(*server))


@pytest.fixture
def url(s3: Any) -> str:
    """The URL of an empty folder in a bucket of its own."""
    name = f"lab{next(_numbers)}"
    s3.create_bucket(Bucket=name)
    return f"s3://{name}/shared/wsa"


class Direct(RemoteBackend):
    """Bypasses the proxy, whatever the environment says."""

    def __init__(self, url: str, endpoint: str) -> None:
        super().__init__(url)
        self.client = S3Store(
            self.place.bucket,
            prefix=self.place.prefix,
            endpoint=endpoint,
            client_options={"allow_http": True},
            disable_bulk_delete=True,
        )

    def _client(self, size: int = 0, *, reading: bool = False) -> Any:
        return self.client


@pytest.fixture
def backend(url: str, server: tuple[str, int]) -> RemoteBackend:
    """The empty folder as a backend."""
    return Direct(url, "http://{}:{}".format(*server))


@pytest.fixture
def bucket_store(url: str) -> Any:
    """A store in it."""
    return open_store(url, create=True)
