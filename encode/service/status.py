"""The status of a store: its services, and what is left to encode.

`wsa status`, its JSON, and the live page all show the numbers of one `Status`.
"""

from __future__ import annotations

import dataclasses
import datetime
import threading
import time
from typing import Any

import msgspec

from wsa.encode.jobs.plan import Digests, make_plan
from wsa.encode.service.heartbeat import MISSED_HEARTBEATS, StoredHeartbeat, read_heartbeats
from wsa.store.backends.base import Backend
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.root import open_store, require_present
from wsa.store.objects.snapshot import Snapshot, take_snapshot

REFRESH_S = 5.0

SERVICE_COLUMNS = (
    *("service", "state", "seen", "workers", "frames/s", "made", "saved", "to do", "errors"),
)
BACKLOG_COLUMNS = ("game", "model", "objects", "passes", "copies")


@dataclasses.dataclass(frozen=True)
class Backlog:
    """What a model has left to encode.

    Attributes:
        objects: Number of embedding objects, one for each segment.
        passes: Number of passes to make.
        copies: Number of embeddings to copy, each of which saves a pass.
    """

    objects: int = 0
    passes: int = 0
    copies: int = 0

    def __add__(self, other: Backlog) -> Backlog:
        return Backlog(
            self.objects + other.objects, self.passes + other.passes, self.copies + other.copies
        )


@dataclasses.dataclass(frozen=True)
class Status:
    """The status of a store.

    Attributes:
        url: The store.
        time: When the heartbeats were read, in seconds since 1970 by this machine's clock.
        services: Newest heartbeat of each service, latest first.
        games: What is left to encode, by game and by key of every model that can encode the game.
        models: Keys of all models.
    """

    url: str
    time: float
    services: tuple[StoredHeartbeat, ...]
    games: dict[str, dict[str, Backlog]]
    models: tuple[str, ...]

    @property
    def backlog(self) -> dict[str, Backlog]:
        """What each model has left to encode in all games; empty if the store has no game."""
        return {
            key: sum((of[key] for of in self.games.values() if key in of), start=Backlog())
            for key in (self.models if self.games else ())
        }

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "services": [
                {
                    **msgspec.to_builtins(stored.heartbeat),
                    "seen": stored.modified,
                    "lost": is_lost(stored, self.time),
                }
                for stored in self.services
            ],
            "backlog": {key: dataclasses.asdict(one) for key, one in self.backlog.items()},
            "games": {
                game: {key: dataclasses.asdict(one) for key, one in of.items()}
                for game, of in self.games.items()
            },
        }

    def service_rows(self) -> list[list[object]]:
        """Return a row of `SERVICE_COLUMNS` for each service."""
        return [_service_row(stored, self.time) for stored in self.services]

    def backlog_rows(self) -> list[list[object]]:
        """Return a row of `BACKLOG_COLUMNS` for each game and model with anything left to encode."""
        return [
            [game, key, *dataclasses.astuple(one)]
            for game, of in self.games.items()
            for key, one in of.items()
            if one.objects
        ]


class StatusReader:
    """Reads the status of a store repeatedly, but each record and digest only once.

    However often it is called, it reads the store at most every few seconds.

    Args:
        url: URL of the store, which need not exist yet.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._backend: Backend | None = None
        self._snapshot: Snapshot | None = None
        self._digests: Digests = {}
        self._newest: Status | None = None
        self._read_at = 0.0

    def read(self) -> Status:
        """Return the status, at most a few seconds old.

        Raises:
            WsaError: If there is no store, or it cannot be read.
        """
        with self._lock:
            if self._newest is None or time.monotonic() - self._read_at > REFRESH_S / 2:
                self._backend = self._backend or open_store(self.url)
                require_present(self._backend)  # A missing folder would read as an empty store.
                self._snapshot = take_snapshot(self._backend, self._snapshot)
                self._newest = read_status(self._backend, self._snapshot, self._digests)
                self._read_at = time.monotonic()
            return self._newest


def read_status(backend: Backend, snapshot: Snapshot, known: Digests | None = None) -> Status:
    """Read the status of a store.

    Args:
        known: Digests that were read before. This call adds those that it reads.

    Raises:
        WsaError: If the store cannot be read.
    """
    heartbeats = tuple(read_heartbeats(backend))
    # Use this machine's clock. To read the store's clock, the user would need to write to it.
    now = time.time()
    known = {} if known is None else known
    games: dict[str, dict[str, Backlog]] = {game: {} for game in snapshot.games}
    for key in snapshot.models if games else ():
        spec = read_spec(snapshot, key)
        of = [spec.game] if spec.game else list(games)
        plan = make_plan(snapshot, [key], of, (), {key: spec.identity.window}, known)
        for game in set(of) & games.keys():
            games[game][key] = Backlog()
        for item in plan.items:
            passes = len(item.own)
            games[item.meta.game][key] += Backlog(1, passes, item.inputs - passes)
    return Status(backend.url, now, heartbeats, games, tuple(snapshot.models))


def is_lost(stored: StoredHeartbeat, now: float) -> bool:
    """Whether a service has missed so many heartbeats that it is dead, or cut off from the store."""
    return now - stored.modified > MISSED_HEARTBEATS * stored.heartbeat.every


def _service_row(stored: StoredHeartbeat, now: float) -> list[object]:
    heartbeat, models = stored.heartbeat, stored.heartbeat.models.values()
    lost = is_lost(stored, now)
    return [
        name_of(stored),
        "no sign" if lost else heartbeat.state,
        show_time(stored.modified) if lost else f"{max(0.0, now - stored.modified):.0f} s ago",
        heartbeat.workers,
        heartbeat.frames_per_second,
        sum(work.passes for work in models),
        sum(work.saved for work in models),
        sum(work.todo_frames for work in models),
        heartbeat.errors,
    ]


def name_of(stored: StoredHeartbeat) -> str:
    """Return the name of a service for people: its author and process id."""
    return f"{stored.heartbeat.author} {stored.heartbeat.pid}"


def details(stored: StoredHeartbeat) -> str:
    """Describe what a service encodes, and since when it runs."""
    heartbeat = stored.heartbeat
    games = f" of {', '.join(heartbeat.games)}" if heartbeat.games else ""
    last = f", last commit {show_time(heartbeat.last_commit)}" if heartbeat.last_commit else ""
    since = f" since {show_time(heartbeat.since)}, wsa {heartbeat.wsa}{last}"
    return f"{name_of(stored)}: {', '.join(heartbeat.asked)}{games}{since}"


def failures(stored: StoredHeartbeat) -> list[str]:
    """List the problems of a service: the error that it waits out, and what it skipped."""
    heartbeat = stored.heartbeat
    lines = [f"trouble: {heartbeat.trouble}"] if heartbeat.trouble else []
    lines += [f"skipped: {what}" for what in heartbeat.set_aside]
    count = sum(work.set_aside for work in heartbeat.models.values())
    if count > len(heartbeat.set_aside):
        lines.append(f"and {count - len(heartbeat.set_aside)} more")
    return lines


def show_time(seconds: float) -> str:
    """Format a time in this machine's zone; a heartbeat may contain any number."""
    try:
        return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "at no time"
