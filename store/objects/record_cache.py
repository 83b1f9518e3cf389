"""What this machine has read of a store's commit records, kept so that opening costs one listing.

Records never change, so a copy of one is as good as the record, as long as the listing still shows
a file of the same length and time in its place. The copies are a cache in the user's own folder:
whatever is wrong with it, the records are read from the store.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

import platformdirs

from wsa.store.backends.base import Entry
from wsa.store.common import hashing
from wsa.store.common.errors import UsageError

# So few records are read as fast from where they are.
WORTHWHILE = 256


def cache_folder() -> Path:
    """`WSA_CACHE`, or the user's cache folder.

    Raises:
        UsageError: Neither is there.
    """
    if named := os.environ.get("WSA_CACHE"):
        return Path(named)
    try:
        return platformdirs.user_cache_path("wsa")
    except RuntimeError:
        raise UsageError(
            "bad-option",
            "You have no home folder here that could hold wsa's cache. Set WSA_CACHE to a folder that "
            "you can write to.",
        ) from None


class Catalog:
    """Records of the store at `url` that were read before."""

    def __init__(self, url: str) -> None:
        self._path = cache_folder() / "catalog" / f"{hashing.identity(url)[:24]}.sqlite"

    def read(self) -> dict[Entry, bytes]:
        """Every record remembered, by what the listing said of its file."""
        found: dict[Entry, bytes] = {}

        def work(database: sqlite3.Connection) -> None:
            rows = "SELECT path, bytes, modified, data FROM record WHERE typeof(data) = 'blob'"
            for *entry, data in database.execute(rows):
                found[Entry(*entry)] = data

        with contextlib.suppress(OSError):
            if self._path.exists():
                self._do(work)
        return found

    def add(self, records: Mapping[Entry, bytes]) -> None:
        """Remember records; of the same path the newest is kept."""
        rows = [(*entry, data) for entry, data in records.items()]

        def work(database: sqlite3.Connection) -> None:
            database.execute(
                "CREATE TABLE IF NOT EXISTS record "
                "(path TEXT PRIMARY KEY, bytes INTEGER, modified REAL, data BLOB)"
            )
            database.executemany("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)", rows)

        with contextlib.suppress(OSError):
            if rows:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._do(work)

    def _do(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Work on the file; a broken one is removed, a busy or forbidden one passed over."""
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=1)) as database:
                database.execute("PRAGMA synchronous=OFF")
                with database:
                    work(database)
        except sqlite3.OperationalError:
            pass
        except sqlite3.DatabaseError:
            self._path.unlink(missing_ok=True)
