"""The verb `status`: the services of a store, and what each of its models has still to encode."""

from __future__ import annotations

import datetime
import time
from typing import Any

import msgspec

from wsa.encode.configs import StatusOptions
from wsa.encode.jobs.plan import Digests, make_plan
from wsa.encode.service.heartbeat import LOST_AFTER, Sign, read_signs
from wsa.store.common import terminal
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.root import open_snapshot
from wsa.store.objects.snapshot import Snapshot


def status(o: StatusOptions) -> int:
    """`wsa status`."""
    backend, snapshot = open_snapshot(o.store)
    signs = read_signs(backend)
    todo = backlog(snapshot)
    # By this machine's clock: to read the place's takes writing there, which not everybody may.
    now = time.time()
    if o.json:
        services = [_described(sign, now) for sign in signs]
        return terminal.result(True, {"services": services, "backlog": todo})
    if signs:
        columns = ["service", "state", "seen", "frames/s", "made", "saved", "to do", "errors"]
        terminal.table("", columns, [_row(sign, now) for sign in signs])
        for sign in signs:
            _remarks(sign)
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
    """Objects, passes and copies that each model of a store lacks, exactly."""
    known: Digests = {}
    found = {}
    for key in snapshot.models if snapshot.games else []:
        windows = {key: read_spec(snapshot, key).identity.window}
        plan = make_plan(snapshot, [key], snapshot.games, (), windows, known)
        found[key] = {"objects": len(plan.items), "passes": plan.passes, "copies": plan.copies}
    return found


def lost(sign: Sign, now: float) -> bool:
    """Whether a service has left out so many beats that it is dead, or far from the store."""
    return now - sign.modified > LOST_AFTER * sign.beat.every


def _described(sign: Sign, now: float) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(sign.beat)
    return values | {"seen": sign.modified, "lost": lost(sign, now)}


def _row(sign: Sign, now: float) -> list[object]:
    beat, models = sign.beat, sign.beat.models.values()
    return [
        f"{beat.author} {beat.pid}",
        "no sign" if lost(sign, now) else beat.state,
        _time(sign.modified) if lost(sign, now) else f"{max(0.0, now - sign.modified):.0f} s ago",
        beat.frames_per_second,
        sum(work.passes for work in models),
        sum(work.saved for work in models),
        sum(work.todo_frames for work in models),
        beat.errors,
    ]


def _remarks(sign: Sign) -> None:
    beat = sign.beat
    games = f" of {', '.join(beat.games)}" if beat.games else ""
    last = f", last commit {_time(beat.last_commit)}" if beat.last_commit else ""
    since = f" since {_time(beat.since)}, wsa {beat.wsa}{last}"
    lines = [f"{beat.author} {beat.pid}: {', '.join(beat.asked)}{games}{since}"]
    lines += [f"  trouble: {beat.trouble}"] if beat.trouble else []
    lines += [f"  set aside: {what}" for what in beat.set_aside]
    count = sum(work.set_aside for work in beat.models.values())
    if count > len(beat.set_aside):
        lines.append(f"  and {count - len(beat.set_aside)} more")
    for line in lines:
        print(terminal.plain(line))


def _time(seconds: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # Whoever may write there may write anything.
        return "at no time"
