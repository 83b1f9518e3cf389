"""Local cache of a store's commit records, so that opening the store costs one listing.

Records never change, so a copy is valid while the listing shows a file of the same length and
modification time. The cache is in the user's own folder. If anything is wrong with it, wsa reads the
records from the store.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

from wsa.store.backends.base import Entry
from wsa.store.common import hashing
from wsa.store.common.cache_folder import cache_folder
from wsa.store.common.errors import UsageError

# Fewer new records are as fast to read from the store.
WORTHWHILE = 256


class Catalog:
    """Cached records of the store at `url`."""

    def __init__(self, url: str) -> None:
        self._path: Path | None = None  # Without a folder for it, nothing is cached.
        with contextlib.suppress(UsageError):
            self._path = cache_folder() / "catalog" / f"{hashing.identity(url)[:24]}.sqlite"

    def read(self) -> dict[Entry, bytes]:
        """Return every cached record by its file's entry in the listing."""
        cached: dict[Entry, bytes] = {}

        def work(database: sqlite3.Connection) -> None:
            rows = "SELECT path, bytes, modified, data FROM record WHERE typeof(data) = 'blob'"
            for *entry, data in database.execute(rows):
                cached[Entry(*entry)] = data

        with contextlib.suppress(OSError):
            if self._path and self._path.exists():
                self._run(self._path, work)
        return cached

    def add(self, records: Mapping[Entry, bytes]) -> None:
        """Cache records, replacing those of the same path."""
        rows = [(*entry, data) for entry, data in records.items()]

        def work(database: sqlite3.Connection) -> None:
            database.execute(
                "CREATE TABLE IF NOT EXISTS record "
                "(path TEXT PRIMARY KEY, bytes INTEGER, modified REAL, data BLOB)"
            )
            database.executemany("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)", rows)

        with contextlib.suppress(OSError):
            if rows and self._path:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._run(self._path, work)

    def _run(self, path: Path, work: Callable[[sqlite3.Connection], None]) -> None:
        """Run `work` on the database; remove a broken one, skip a locked or forbidden one."""
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=1)) as database:
                database.execute("PRAGMA synchronous=OFF")
                with database:
                    work(database)
        except sqlite3.OperationalError:
            pass
        except sqlite3.DatabaseError:
            path.unlink(missing_ok=True)
