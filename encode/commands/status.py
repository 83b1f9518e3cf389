"""The command `wsa status`: show the services of a store and the backlog of each model."""

from __future__ import annotations

import dataclasses
import time
from typing import NoReturn

from wsa.encode.configs import StatusOptions
from wsa.encode.service.status import (
    BACKLOG_COLUMNS,
    SERVICE_COLUMNS,
    Status,
    StatusReader,
    details,
    failures,
    read_status,
)
from wsa.store.common import terminal
from wsa.store.common.errors import UsageError
from wsa.store.common.ranges import check_ranges
from wsa.store.objects.root import open_snapshot


def status(o: StatusOptions) -> int:
    """Run `wsa status`."""
    check_ranges(o)
    if o.serve is None and o.host != StatusOptions.host:
        raise UsageError("--host is for a page; add --serve.")
    if o.serve is not None and (o.json or len(o.serve) > 1):
        raise UsageError(
            "--serve takes one port, and no --json: the page has the same as status.json."
        )
    backend, snapshot = open_snapshot(o.store)
    if o.serve is not None:
        _serve(backend.url, o.host, o.serve[0] if o.serve else 0)
    found = read_status(backend, snapshot)
    if o.json:
        return terminal.result(True, found.as_json())
    _print(found)
    return 0


def _print(found: Status) -> None:
    if found.services:
        terminal.table("", SERVICE_COLUMNS, found.service_rows())
        for stored in found.services:
            for line in (details(stored), *(f"  {why}" for why in failures(stored))):
                print(terminal.plain(line))
    else:
        print("No service keeps this store encoded. To start one: wsa encode --watch")
    print()
    if not found.backlog:
        print("The store has no models yet, or no frames.")
        return
    rows = found.backlog_rows()
    if len({game for game, *_ in rows}) > 1:
        terminal.table("Still to encode, by game", BACKLOG_COLUMNS, rows)
        print()
    terminal.table(
        "Still to encode, of all games",
        BACKLOG_COLUMNS[1:],
        [[key, *dataclasses.astuple(one)] for key, one in found.backlog.items()],
    )


def _serve(url: str, host: str, port: int) -> NoReturn:
    """Serve the live page until Ctrl-C or SIGTERM."""
    from wsa.encode.service import http_server

    apps = http_server.status_apps(StatusReader(url))
    with http_server.serve(host, port, apps, "--serve") as served:
        terminal.say(f"status at {served}/ until Ctrl-C")
        while True:
            time.sleep(60)
