"""Write and read heartbeats in the store, so that all users of the store see all its services.

The newest heartbeat of a service says what it is doing and has done. Files are never overwritten,
so each heartbeat is a new file, and the previous one is deleted. The listing gives its age by the
clock of the store's file system or bucket. Heartbeats are not part of the data: they only decide
which service claims which work, and what `wsa status` shows.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, Self

import msgspec

from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.common.errors import DamagedError, WsaError
from wsa.store.format import records
from wsa.store.objects.root import require_present

MAX_HEARTBEAT_BYTES = 256 << 10
# Limit on the services to read, newest first, since a folder may be full of them.
MAX_SERVICES = 256
# Number of missing heartbeats after which a service counts as dead.
MISSED_HEARTBEATS = 4
SHUTDOWN_S = 10.0

State = Literal["starting", "waiting", "encoding", "storage-down", "no-workers", "trouble"]
HEALTHY: frozenset[State] = frozenset(("waiting", "encoding"))
Text = Annotated[str, msgspec.Meta(max_length=1000)]
Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Interval = Annotated[float, msgspec.Meta(ge=0.1, le=600)]


class ModelCounters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Counters of one model since the service started, and its backlog.

    Attributes:
        done: Number of segments encoded.
        failed: Number of times that a segment failed every attempt.
        set_aside: Number of segments that are currently skipped for this.
        passes: Number of frames that went through the model.
        saved: Number of frames whose embedding was copied instead.
        todo: Number of segments still to encode, without those skipped.
        todo_frames: Number of frames in these segments.
    """

    done: Number = 0
    failed: Number = 0
    set_aside: Number = 0
    passes: Number = 0
    saved: Number = 0
    todo: Number = 0
    todo_frames: Number = 0


class Heartbeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state of a service. Times are seconds since 1970 by the service's own clock.

    Attributes:
        version: Version of this record, 1.
        service: Name of the service, 16 hex digits drawn when it started.
        author: User who started it, as `user@host`.
        pid: Id of its process.
        wsa: Version of wsa.
        since: Time when it started.
        every: Seconds between two heartbeats.
        state: Current activity.
        trouble: Error that it waits out, or "".
        errors: Number of errors since the start.
        asked: Models, as the user named them.
        games: Games; all if empty.
        models: Counters, by model key.
        frames_per_second: Recent rate of encoding in frames per second, with copies.
        frames_per_second_overall: The same rate since the start.
        last_commit: Time of the last commit, or 0.
        set_aside: A few of the objects that it could not encode, with reasons.
        workers: Number of workers that encode for it.
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
    models: Annotated[dict[Text, ModelCounters], msgspec.Meta(max_length=1024)]
    frames_per_second: Seconds
    frames_per_second_overall: Seconds
    last_commit: Seconds
    set_aside: Annotated[tuple[Text, ...], msgspec.Meta(max_length=16)]
    workers: Number = 0


class StoredHeartbeat(NamedTuple):
    """The newest heartbeat of a service, and its time by the store's clock."""

    heartbeat: Heartbeat
    modified: float


def newest_heartbeats(backend: Backend) -> dict[str, tuple[str, float]]:
    """Return path and time of each service's newest heartbeat, by service, latest first."""
    newest: dict[str, tuple[str, float]] = {}
    for entry in backend.list(names.SERVICES):
        if names.is_service_file(entry.path):
            service = entry.path.removeprefix(f"{names.SERVICES}/").partition("-")[0]
            newest[service] = max(newest.get(service, ("", 0.0)), (entry.path, entry.modified))
    latest = sorted(newest, key=lambda service: -newest[service][1])[:MAX_SERVICES]
    return {service: newest[service] for service in latest}


def read_heartbeats(backend: Backend) -> list[StoredHeartbeat]:
    """Read the newest heartbeat of every service that left one, latest first.

    Files with other content, or of another version, are ignored.
    """
    heartbeats: dict[str, StoredHeartbeat] = {}
    for _ in range(3):  # A heartbeat may be replaced between listing and reading.
        unread = {s: at for s, at in newest_heartbeats(backend).items() if s not in heartbeats}
        for service, (path, modified) in unread.items():
            with contextlib.suppress(FileNotFoundError, DamagedError):
                data = backend.get(path, MAX_HEARTBEAT_BYTES)
                heartbeat = records.read_json(data, Heartbeat, path, MAX_HEARTBEAT_BYTES)
                if heartbeat.service == service:
                    heartbeats[service] = StoredHeartbeat(heartbeat, modified)
    return sorted(heartbeats.values(), key=lambda stored: -stored.modified)


class HeartbeatThread:
    """Writes a heartbeat to the store every few seconds until it is stopped.

    If the store is gone or refuses a write, that heartbeat is skipped. When it stops, it calls `on_stop` and
    deletes the last heartbeat, but waits no longer than `SHUTDOWN_S` for that.

    Args:
        backend: Backend of the store, used by this thread alone.
        read: Returns the heartbeat to write.
        on_stop: Called when the thread stops.
    """

    def __init__(
        self, backend: Backend, read: Callable[[], Heartbeat], on_stop: Callable[[], None]
    ) -> None:
        self._backend, self._read, self._on_stop = backend, read, on_stop
        self._over = threading.Event()
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Start and wait for the first heartbeat, which others must see before any claim."""
        self._thread.start()
        self._first.wait(SHUTDOWN_S)
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(SHUTDOWN_S)

    def _run(self) -> None:
        put: list[str] = []
        number = 0
        while not self._over.is_set():
            heartbeat = self._read()
            with contextlib.suppress(WsaError):
                number += 1
                require_present(self._backend)  # Leave an empty mount point alone.
                path = names.heartbeat_path(heartbeat.service, number)
                put.append(path)  # First, since an error may follow a successful write.
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
    """Return a random name for a new service."""
    return secrets.token_hex(8)
