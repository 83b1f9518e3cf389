"""A service's heartbeat in the store, so that everyone who has the store sees every service.

The newest heartbeat of a service says what it is doing and has done. Files are never overwritten, so
each heartbeat is a new file, and the one before is removed. Its age is by the clock of the store's
file system or bucket, as the listing shows it. Heartbeats are no part of the data: they decide only
which service starts on what, and what a person is shown.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Annotated, Literal, NamedTuple, Self

import msgspec

from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.common.errors import DamagedError, WsaError
from wsa.store.format import records

MAX_HEARTBEAT_BYTES = 64 << 10
# The newest are read; a folder may be full of them.
MAX_SERVICES = 256
# Heartbeats that may be missing before a service counts as dead.
MISSED_HEARTBEATS = 4
SHUTDOWN_S = 10.0

State = Literal["starting", "waiting", "encoding", "storage-down", "no-workers", "trouble"]
Text = Annotated[str, msgspec.Meta(max_length=1000)]
Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Interval = Annotated[float, msgspec.Meta(ge=0.1, le=600)]


class ModelCounters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model's counters since the service started, and what it has still to do.

    Attributes:
        done: Segments encoded.
        failed: How often a segment failed every attempt.
        set_aside: Segments that are set aside for that now.
        passes: Passes made: frames that went through the model.
        saved: Passes saved: frames whose embedding was copied.
        todo: Segments still to encode, without those set aside.
        todo_frames: Their frames.
    """

    done: Number = 0
    failed: Number = 0
    set_aside: Number = 0
    passes: Number = 0
    saved: Number = 0
    todo: Number = 0
    todo_frames: Number = 0


class Heartbeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a service says of itself. Times are seconds since 1970 by its own clock.

    Attributes:
        version: Version of this record, 1.
        service: 16 hex digits, drawn when it started.
        author: Who started it, `user@host`.
        pid: Its process there.
        wsa: Its version.
        since: When it started.
        every: Seconds between two heartbeats.
        state: What it is doing.
        trouble: The error that it waits for to pass, or "".
        errors: Errors since it started.
        asked: The models, as asked for.
        games: The games; none means all.
        models: Counters, by model key.
        frames_per_second: Frames encoded in a second, copies included, lately.
        frames_per_second_overall: The same since the start.
        last_commit: When it last committed an object, or 0.
        set_aside: What it could not encode, and why; a few of them.
    """

    version: Literal[1]
    service: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}\\Z")]
    author: Text
    pid: Number
    wsa: Text
    since: Seconds
    every: Interval
    state: State
    trouble: Text
    errors: Number
    asked: Annotated[tuple[Text, ...], msgspec.Meta(max_length=64)]
    games: Annotated[tuple[Text, ...], msgspec.Meta(max_length=128)]
    models: Annotated[dict[Text, ModelCounters], msgspec.Meta(max_length=64)]
    frames_per_second: Seconds
    frames_per_second_overall: Seconds
    last_commit: Seconds
    set_aside: Annotated[tuple[Text, ...], msgspec.Meta(max_length=16)]


class StoredHeartbeat(NamedTuple):
    """A service's newest heartbeat, and when it came by the store's clock."""

    heartbeat: Heartbeat
    modified: float


def newest_heartbeats(backend: Backend) -> dict[str, tuple[str, float]]:
    """Path and time of the newest heartbeat of each service, by service; the latest services first."""
    found: dict[str, tuple[str, float]] = {}
    for entry in backend.list(names.SERVICES):
        if names.is_sign(entry.path):
            service = entry.path.removeprefix(f"{names.SERVICES}/").partition("-")[0]
            found[service] = max(found.get(service, ("", 0.0)), (entry.path, entry.modified))
    latest = sorted(found, key=lambda service: -found[service][1])[:MAX_SERVICES]
    return {service: found[service] for service in latest}


def read_heartbeats(backend: Backend) -> list[StoredHeartbeat]:
    """The newest heartbeat of every service that left one, the latest first.

    Files of any other content, or of another version, are passed over.
    """
    found: dict[str, StoredHeartbeat] = {}
    for _ in range(3):  # A heartbeat may be replaced between the listing and the reading.
        wanted = {s: at for s, at in newest_heartbeats(backend).items() if s not in found}
        for service, (path, modified) in wanted.items():
            with contextlib.suppress(FileNotFoundError, DamagedError):
                data = backend.get(path, MAX_HEARTBEAT_BYTES)
                heartbeat = records.read_json(data, Heartbeat, path, MAX_HEARTBEAT_BYTES)
                if heartbeat.service == service:
                    found[service] = StoredHeartbeat(heartbeat, modified)
    return sorted(found.values(), key=lambda stored: -stored.modified)


class HeartbeatThread:
    """Puts a heartbeat into the store every few seconds until it is stopped.

    If the store rejects a write, that heartbeat is skipped. When it stops, it calls `on_stop` and
    deletes the last heartbeat, but waits no longer than `SHUTDOWN_S` for that.

    Args:
        backend: The store; used by the thread alone.
        read: Gives what to put.
        on_stop: Called last of all.
    """

    def __init__(
        self, backend: Backend, read: Callable[[], Heartbeat], on_stop: Callable[[], None]
    ) -> None:
        self._backend, self._read, self._on_stop = backend, read, on_stop
        self._over = threading.Event()
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Start, with a first heartbeat, which others should see before this service claims work."""
        self._thread.start()
        self._first.wait(SHUTDOWN_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(SHUTDOWN_S)

    def _run(self) -> None:
        put: list[str] = []
        number = 0
        while not self._over.is_set():
            heartbeat = self._read()
            with contextlib.suppress(WsaError):
                number += 1
                path = names.sign_path(heartbeat.service, number)
                put.append(path)  # First: a refusal may come after the file.
                self._backend.put_new(path, hashing.canonical(heartbeat))
                self._remove(put, 1)
            self._first.set()
            self._over.wait(heartbeat.every)
        with contextlib.suppress(WsaError):
            self._on_stop()
            self._remove(put, 0)

    def _remove(self, put: list[str], keep: int) -> None:
        while len(put) > keep:
            self._backend.delete(put[0])
            del put[0]


def new_service() -> str:
    """A name for a service that starts now."""
    return secrets.token_hex(8)
