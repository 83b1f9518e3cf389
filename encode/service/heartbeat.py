"""A service's sign of life in the store, so that whoever has the store sees every service.

The newest beat of a service says what it is doing and has done. Files are never overwritten, so each
beat is a new file, and the one before is removed. How long ago a beat was is told by the clock of the
place, as its listing shows it. Signs are no part of the data: nothing is ever decided by them but who
starts on what, and what a person is shown.
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

MAX_SIGN_BYTES = 64 << 10
# Of a folder full of signs, the newest.
MAX_SERVICES = 256
# Beats that may fail to come before a service counts as dead.
LOST_AFTER = 4
FAREWELL_S = 10.0

State = Literal["starting", "waiting", "encoding", "storage-down", "no-workers", "trouble"]
Text = Annotated[str, msgspec.Meta(max_length=1000)]
Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Interval = Annotated[float, msgspec.Meta(ge=0.1, le=600)]


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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


class Beat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a service says of itself. Times are seconds since 1970 by its own clock.

    Attributes:
        version: Version of this record, 1.
        service: 16 hex digits, drawn when it started.
        author: Who started it, `user@host`.
        pid: Its process there.
        wsa: Its version.
        since: When it started.
        every: Seconds between two beats.
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
    models: Annotated[dict[Text, Work], msgspec.Meta(max_length=64)]
    frames_per_second: Seconds
    frames_per_second_overall: Seconds
    last_commit: Seconds
    set_aside: Annotated[tuple[Text, ...], msgspec.Meta(max_length=16)]


class Sign(NamedTuple):
    """A service's newest beat, and when the place says it came."""

    beat: Beat
    modified: float


def newest(backend: Backend) -> dict[str, tuple[str, float]]:
    """Path and time of the newest beat of each service, by service; the latest services first."""
    found: dict[str, tuple[str, float]] = {}
    for entry in backend.list(names.SERVICES):
        if names.is_sign(entry.path):
            service = entry.path.removeprefix(f"{names.SERVICES}/").partition("-")[0]
            found[service] = max(found.get(service, ("", 0.0)), (entry.path, entry.modified))
    latest = sorted(found, key=lambda service: -found[service][1])[:MAX_SERVICES]
    return {service: found[service] for service in latest}


def read_signs(backend: Backend) -> list[Sign]:
    """The newest beat of every service that left one, the latest first.

    What is no beat of this version is passed over.
    """
    signs: dict[str, Sign] = {}
    for _ in range(3):  # A beat may be replaced between the listing and the reading.
        wanted = {s: at for s, at in newest(backend).items() if s not in signs}
        for service, (path, modified) in wanted.items():
            with contextlib.suppress(FileNotFoundError, DamagedError):
                data = backend.get(path, MAX_SIGN_BYTES)
                beat = records.read_json(data, Beat, path, MAX_SIGN_BYTES)
                if beat.service == service:
                    signs[service] = Sign(beat, modified)
    return sorted(signs.values(), key=lambda sign: -sign.modified)


class Heart:
    """Puts a beat into the store every few seconds, from a thread, until it is stopped.

    While the place refuses, beats are left out. When it stops it does what `farewell` does and takes
    its last beat away, but for longer than `FAREWELL_S` nobody waits for that.

    Args:
        backend: The store; used by the thread alone.
        beat: Says what to put.
        farewell: Called last of all.
    """

    def __init__(
        self, backend: Backend, beat: Callable[[], Beat], farewell: Callable[[], None]
    ) -> None:
        self._backend, self._beat, self._farewell = backend, beat, farewell
        self._over = threading.Event()
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def __enter__(self) -> Self:
        """Begin, with a first beat, which others shall see before this service claims anything."""
        self._thread.start()
        self._first.wait(FAREWELL_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(FAREWELL_S)

    def _run(self) -> None:
        put: list[str] = []
        number = 0
        while not self._over.is_set():
            beat = self._beat()
            with contextlib.suppress(WsaError):
                number += 1
                path = names.sign_path(beat.service, number)
                put.append(path)  # First: a refusal may come after the file.
                self._backend.put_new(path, hashing.canonical(beat))
                self._remove(put, 1)
            self._first.set()
            self._over.wait(beat.every)
        with contextlib.suppress(WsaError):
            self._farewell()
            self._remove(put, 0)

    def _remove(self, put: list[str], keep: int) -> None:
        while len(put) > keep:
            self._backend.delete(put[0])
            del put[0]


def new_service() -> str:
    """A name for a service that starts now."""
    return secrets.token_hex(8)
