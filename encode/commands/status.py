"""The command `wsa status`: show the services of a store and the backlog of each model."""

from __future__ import annotations

import datetime
import time
from typing import Any

import msgspec

from wsa.encode.configs import StatusOptions
from wsa.encode.jobs.plan import Digests, make_plan
from wsa.encode.service.heartbeat import MISSED_HEARTBEATS, StoredHeartbeat, read_heartbeats
from wsa.store.common import terminal
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.root import open_snapshot
from wsa.store.objects.snapshot import Snapshot


def status(o: StatusOptions) -> int:
    """Run `wsa status`."""
    backend, snapshot = open_snapshot(o.store)
    heartbeats = read_heartbeats(backend)
    todo = backlog(snapshot)
    # Use this machine's clock. Reading the store's takes a write, which a user may not be allowed.
    now = time.time()
    if o.json:
        services = [_as_json(stored, now) for stored in heartbeats]
        return terminal.result(True, {"services": services, "backlog": todo})
    if heartbeats:
        columns = ["service", "state", "seen", "frames/s", "made", "saved", "to do", "errors"]
        terminal.table("", columns, [_row(stored, now) for stored in heartbeats])
        for stored in heartbeats:
            _details(stored)
    else:
        print("No service keeps this store encoded; 'wsa encode --watch' would.")
    print()
    if not todo:
        print("The store has no models yet, or no frames.")
        return 0
    terminal.table(
        "Still to encode, of all games",
        ["model", "objects", "passes", "copies"],
        [[key, *one.values()] for key, one in todo.items()],
    )
    return 0


def backlog(snapshot: Snapshot) -> dict[str, dict[str, int]]:
    """Return the exact numbers of objects, passes and copies that each model still needs."""
    known: Digests = {}
    backlogs = {}
    for key in snapshot.models if snapshot.games else []:
        spec = read_spec(snapshot, key)
        games = [spec.game] if spec.game else snapshot.games
        windows = {key: spec.identity.window}
        plan = make_plan(snapshot, [key], games, (), windows, known)
        backlogs[key] = {"objects": len(plan.items), "passes": plan.passes, "copies": plan.copies}
    return backlogs


def is_lost(stored: StoredHeartbeat, now: float) -> bool:
    """Return whether a service has missed too many heartbeats: it is dead or cut off."""
    return now - stored.modified > MISSED_HEARTBEATS * stored.heartbeat.every


def _as_json(stored: StoredHeartbeat, now: float) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(stored.heartbeat)
    return values | {"seen": stored.modified, "lost": is_lost(stored, now)}


def _row(stored: StoredHeartbeat, now: float) -> list[object]:
    heartbeat, models = stored.heartbeat, stored.heartbeat.models.values()
    ago = f"{max(0.0, now - stored.modified):.0f} s ago"
    seen = _time(stored.modified) if is_lost(stored, now) else ago
    return [
        f"{heartbeat.author} {heartbeat.pid}",
        "no sign" if is_lost(stored, now) else heartbeat.state,
        seen,
        heartbeat.frames_per_second,
        sum(work.passes for work in models),
        sum(work.saved for work in models),
        sum(work.todo_frames for work in models),
        heartbeat.errors,
    ]


def _details(stored: StoredHeartbeat) -> None:
    heartbeat = stored.heartbeat
    games = f" of {', '.join(heartbeat.games)}" if heartbeat.games else ""
    last = f", last commit {_time(heartbeat.last_commit)}" if heartbeat.last_commit else ""
    since = f" since {_time(heartbeat.since)}, wsa {heartbeat.wsa}{last}"
    lines = [f"{heartbeat.author} {heartbeat.pid}: {', '.join(heartbeat.asked)}{games}{since}"]
    lines += [f"  trouble: {heartbeat.trouble}"] if heartbeat.trouble else []
    lines += [f"  set aside: {what}" for what in heartbeat.set_aside]
    count = sum(work.set_aside for work in heartbeat.models.values())
    if count > len(heartbeat.set_aside):
        lines.append(f"  and {count - len(heartbeat.set_aside)} more")
    for line in lines:
        print(terminal.plain(line))


def _time(seconds: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # A file may hold any number.
        return "at no time"
