"""An enemy who can write to the store and compute checksums."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.format import records
from wsa.store.format.records import Commit, File, Meta

Plant = Callable[[Backend, Meta, dict[str, bytes]], None]


@pytest.fixture
def plant() -> Plant:
    """Commit any bytes as an object."""

    def commit(store: Backend, meta: Meta, files: dict[str, bytes]) -> None:
        listed = tuple(
            File(name, len(data), hashing.checksum(data)) for name, data in files.items()
        )
        record = records.seal(Commit(1, meta, "0" * 16, listed, "eve", "", ""))
        for name, data in files.items():
            store.put_new(f"{record.folder}/{name}", data)
        store.put_new(names.commit_path(record.id), records.write_commit(record))

    return commit
